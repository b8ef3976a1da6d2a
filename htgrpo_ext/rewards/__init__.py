"""Rewards: scored in this process or by reward servers, and mixed into advantages. `scorers/` has a file per model."""

TOKEN = "HTGRPO_REWARD_TOKEN"  # environment variable: the bearer token that reward servers and their clients share
