"""Exporters: stores in other packages' formats. One format a file."""
