"""LLaDA's transformer, on which MMaDA and Lumina-DiMOO are built, and what their backbones share."""
