"""Ways to an arm, one a file; each imports what it needs when it is opened."""
