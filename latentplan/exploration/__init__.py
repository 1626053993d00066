"""Who chooses actions while collecting, and the collecting itself."""
