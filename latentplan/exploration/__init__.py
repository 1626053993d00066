"""Policies without a model, and the collection of episodes."""
