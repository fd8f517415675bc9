"""From the lines of a manifest to batches."""
