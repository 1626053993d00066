"""What each command does: the only place where systems are wired together."""
