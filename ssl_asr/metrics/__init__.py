"""Error counts, error rates, significance tests and reports."""
