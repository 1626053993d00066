"""The tasks of robosuite 1.5, see docs/robosuite.md; they import its package when built."""
