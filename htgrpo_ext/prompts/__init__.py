"""Where a run's prompts come from, and a GenEval-style set to train on."""
