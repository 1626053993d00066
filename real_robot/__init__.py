"""Real arms: what every arm offers, the safety between a planner and its motors, and backends."""
