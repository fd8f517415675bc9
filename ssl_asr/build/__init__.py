"""From a resolved configuration or a checkpoint to objects."""
