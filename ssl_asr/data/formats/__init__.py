"""Corpora in the formats of other toolkits: one module for each, which reads rows and writes them."""
