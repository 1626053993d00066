"""Selftok: tokens in the order of diffusion time, decoded by a rectified flow."""
