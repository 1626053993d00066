"""The evaluations of CALVIN (Mees et al. 2022, arXiv 2112.03227)."""
