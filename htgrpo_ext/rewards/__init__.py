"""Rewards: scored in this process or by reward servers, and mixed into advantages. `scorers/` has a file per model."""

from htgrpo_ext.errors import one_line

TOKEN = "HTGRPO_REWARD_TOKEN"  # environment variable: the bearer token that reward servers and their clients share
LARGEST_SCORE = 1e15  # in size: sums and squares over millions of rollouts stay finite in float32


def fault_of(score: object) -> str | None:
    """Why a score cannot be used, as words that follow its name; None if it can."""
    if isinstance(score, bool) or not isinstance(score, int | float):
        return f"is {one_line(repr(score), 40)}, not a number"
    if not abs(score) <= LARGEST_SCORE:  # NaN, too; an integer may be too large for a float
        return f"is {one_line(score, 40)}, not a finite number of at most {LARGEST_SCORE:g} in size"
    return None
