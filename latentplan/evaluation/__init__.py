"""How good a planner is on starts and goals that it has never seen, beside its controls."""
