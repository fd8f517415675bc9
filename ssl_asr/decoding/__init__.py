"""From logits or states to hypotheses."""
