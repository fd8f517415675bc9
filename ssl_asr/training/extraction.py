"""Encode a data module's utterances and store their states."""

import lightning as L

from ssl_asr.training.state_cache import StateCache
from ssl_asr.types import Batch, Skip


class Extraction(L.LightningModule):
    """Stores the states of every batch of the test loop.

    Args:
        cache: A cache whose encoder is in eval mode.
    """

    def __init__(self, cache: StateCache) -> None:
        super().__init__()
        self.cache = cache
        # Registered, so that Lightning moves it to the device.
        self.encoder = cache.encoder
        self.skipped: list[Skip] = []

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Encode and store one batch."""
        self.skipped += batch.skipped
        if len(batch):
            self.cache.fill(batch)

    def on_test_end(self) -> None:
        """Write states that are still in memory."""
        self.cache.store.flush()
