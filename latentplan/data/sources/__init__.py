"""Importers: data sets in other formats, read as episodes. One format a file."""
