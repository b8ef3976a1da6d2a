"""A run in tables, curves and pictures: summary, report, comparison."""
