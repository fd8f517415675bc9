"""From manifest lines to batches."""
