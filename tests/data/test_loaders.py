"""How long a loader lets its caller wait."""

import pytest
import torch

from ssl_asr.data import loaders
from ssl_asr.data.dataset import collate
from ssl_asr.data.loaders import NoticingLoader


def test_waiting_is_what_passes_between_asking_and_getting(monkeypatch):
    """Batches take 2 s to read, and their caller takes 10 s for each."""
    clock = [0.0]
    monkeypatch.setattr(loaders.time, "monotonic", lambda: clock[0])

    class Dataset:
        def __getitem__(self, index):
            clock[0] += 2.0
            return index

    batch = collate([])
    batch.notices.append("seen")
    monkeypatch.setattr(loaders, "collate", lambda _: batch)
    notices = {}
    device = torch.device("cpu")
    loader = NoticingLoader(dataset=Dataset(), sampler=[[0], [1], [2]], notices=notices, device=device, num_workers=0)
    for _ in loader:
        clock[0] += 10.0
    assert loader.waited_s == pytest.approx(6.0)
    assert list(notices) == ["seen"]
