"""Simulated tasks; each file is one env (or an adapter to one)."""
