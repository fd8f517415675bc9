"""Encoders, decoders, heads, freezing and where their weights come from."""
