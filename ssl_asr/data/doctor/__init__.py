"""Checks of manifests: audio, texts, duplicates, and what splits share."""
