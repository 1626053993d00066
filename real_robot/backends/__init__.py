"""Backends, one a file: drivers of an arm. Each imports its libraries when it is opened."""
