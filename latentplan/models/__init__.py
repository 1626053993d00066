"""Latent dynamics models, one a file; each satisfies `protocols.Dynamics`."""
