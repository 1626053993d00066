"""Episode stores and training windows."""
