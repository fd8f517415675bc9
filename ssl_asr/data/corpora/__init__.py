"""Corpora that can be synthesized or downloaded."""
