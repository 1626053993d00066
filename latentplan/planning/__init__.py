"""Planners: they choose actions by imagining latents, and know no concrete model."""
