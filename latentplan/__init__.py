"""latentplan: learn a latent dynamics model from robot experience and plan with it."""
