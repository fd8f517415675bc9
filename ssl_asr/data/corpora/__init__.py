"""Corpora that can be made or fetched."""
