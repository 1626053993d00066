"""What is wrong with recorded episodes: each check names episode and row."""
