"""Evaluation of planners on held-out starts and goals, compared with baselines."""
