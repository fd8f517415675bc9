"""How long a loader lets its caller wait."""

import pytest
import torch

from ssl_asr.config.launch import _as_user_error
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


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_batch_of_a_worker_that_has_ended_is_the_error_of_its_end(monkeypatch, error):
    """What multiprocessing raises if a worker ends between its batch and the memory of the batch."""

    class Lost:
        def __next__(self):
            raise error

    monkeypatch.setattr(loaders.DataLoader, "__iter__", lambda _: Lost())
    loader = NoticingLoader(dataset=[0], sampler=[[0]], notices={}, device=torch.device("cpu"), num_workers=0)
    with pytest.raises(RuntimeError, match="DataLoader worker exited unexpectedly") as caught:
        list(loader)
    said = str(_as_user_error(caught.value))
    assert said.startswith("data.num_workers: DataLoader worker exited unexpectedly, its batch was not received. See")
