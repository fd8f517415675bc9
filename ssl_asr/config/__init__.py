"""The typed configuration of every command: schemas, composition, checks and help."""
