"""Policies that need no model, and the collection of episodes."""
