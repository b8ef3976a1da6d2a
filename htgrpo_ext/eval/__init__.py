"""Scores of a run and what is made of them: summary, report, comparison."""
