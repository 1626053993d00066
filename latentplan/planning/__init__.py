"""Planners, and the policies that plan with a latent dynamics model."""
