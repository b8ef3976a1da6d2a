"""Rewards: one file each."""

TOKEN = (
    "HTGRPO_REWARD_TOKEN"  # environment variable with the bearer token of servers and their clients, if there is one
)
