"""The simulator of CALVIN (Mees et al. 2022, arXiv 2112.03227), out of the user's checkout."""
