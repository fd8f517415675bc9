"""Runs, comparisons of runs, and sweeps as one HTML page."""
