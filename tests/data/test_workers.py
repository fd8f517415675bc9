import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import suppress

import torch
from torch.utils.data import DataLoader

from ssl_asr.config.launch import _as_user_error
from ssl_asr.data.workers import prepare_worker
from tests.command_runner import REPO


class Unsendable:
    def __reduce__(self):
        raise OSError("No space left on device")


def load(results):
    batches = [torch.zeros(1), Unsendable(), torch.zeros(1)]
    # Without the end of the worker, the loader would wait as long as its timeout.
    loader = DataLoader(batches, batch_size=None, num_workers=1, worker_init_fn=prepare_worker, timeout=60)
    try:
        results.send(list(loader))
    except RuntimeError as error:
        results.send(str(_as_user_error(error)))


def test_a_worker_that_cannot_send_its_batch_ends_and_the_error_names_the_option(capfd):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()
    # torch raises the error in a handler of SIGCHLD, at any time.
    process = context.Process(target=load, args=(sender,))
    process.start()
    said = receiver.recv()
    process.join()
    assert said.startswith("data.num_workers: DataLoader worker")
    assert "exited unexpectedly" in said
    assert "/dev/shm" in said
    assert "a loader worker cannot send a batch: No space left on device" in capfd.readouterr().err


LEFT = """
from torch.utils.data import DataLoader
from ssl_asr.data.workers import prepare_worker
batches = iter(DataLoader(range(100), num_workers=2, worker_init_fn=prepare_worker))
next(batches)
raise SystemExit(143)
"""


def test_a_process_ends_with_the_workers_of_an_epoch_that_is_not_over():
    # Python's own end sends the workers one SIGTERM, which they take for that of their run, and waits for them.
    process = subprocess.Popen([sys.executable, "-c", LEFT], start_new_session=True, cwd=REPO)
    try:
        assert process.wait(timeout=100) == 143
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
