"""VideoGPT: a likelihood model of video, a GPT over the tokens of a 3-D VQ-VAE."""
