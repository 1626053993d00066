"""The simulator of CALVIN (Mees et al. 2022, arXiv 2112.03227), from the user's checkout."""
