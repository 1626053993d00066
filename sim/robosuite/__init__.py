"""The tasks of robosuite 1.5, see docs/robosuite.md; its package is imported when one is made."""
