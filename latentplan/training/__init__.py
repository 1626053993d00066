"""Training of latent dynamics models: the loop, held-out figures, checkpoints."""
