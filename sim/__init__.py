"""Simulated tasks: envs, adapters to envs of other packages, and their rendering."""
