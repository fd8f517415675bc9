import pytest
import torch
from torch.utils.data import DataLoader

from ssl_asr.config.launch import _as_user_error
from ssl_asr.data.workers import prepare_worker


class Unsendable:
    def __reduce__(self):
        raise OSError("No space left on device")


def test_a_worker_that_cannot_send_its_batch_ends_and_the_error_names_the_option(capfd):
    batches = [torch.zeros(1), Unsendable(), torch.zeros(1)]
    # Without the end of the worker, the loader would wait as long as its timeout.
    loader = DataLoader(batches, batch_size=None, num_workers=1, worker_init_fn=prepare_worker, timeout=60)
    with pytest.raises(RuntimeError) as caught:
        list(loader)
    error = _as_user_error(caught.value)
    assert error.where == "data.num_workers"
    assert "exited unexpectedly" in error.what
    assert "a loader worker cannot send a batch: No space left on device" in capfd.readouterr().err
