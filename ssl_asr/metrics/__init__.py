"""Errors counted, summed and reported."""
