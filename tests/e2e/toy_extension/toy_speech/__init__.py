"""A package of somebody else that brings one option of each kind."""
