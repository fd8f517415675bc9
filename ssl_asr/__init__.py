"""Fine-tune pretrained speech models; importing the package imports no torch."""

__version__ = "0.1.0"
