"""LQAE: images as words, through a frozen language model."""
