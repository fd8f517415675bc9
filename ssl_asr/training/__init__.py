"""LightningModules, their two optimizers, callbacks, checkpoints and loggers."""
