"""Rollouts: finished images for prompts, with the generation order of their tokens."""
