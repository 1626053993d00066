"""CALVIN's evaluation (Mees et al. 2022, arXiv 2112.03227): its tasks, its chains, its figures."""
