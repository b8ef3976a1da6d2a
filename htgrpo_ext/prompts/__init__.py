"""The prompts that a run trains on, and a GenEval-style training set."""
