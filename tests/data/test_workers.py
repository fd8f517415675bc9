import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest

from tests.command_runner import REPO

LOADER = """
import signal
from torch.utils.data import DataLoader
from ssl_asr.config.launch import _as_user_error
from ssl_asr.data.workers import prepare_worker

class Unsendable:
    def __reduce__(self):
        raise OSError("No space left on device")

def loader(batches):
    return DataLoader(batches, batch_size=None, num_workers=2, worker_init_fn=prepare_worker)
"""
UNSENDABLE = """
try:
    list(loader([1, Unsendable(), 1]))
except RuntimeError as error:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    print(_as_user_error(error))
"""
# A worker that may write no file of the size of a batch, or open no more files.
REFUSED = """
import resource, torch
from ssl_asr.data.loaders import NoticingLoader
from ssl_asr.types import Example, Utterance

class Examples:
    def __getitem__(self, index):
        if index == 2:
            # No file may be opened with a number of 3 or more, however many are open.
            limit = {{"FSIZE": 1000, "NOFILE": 3}}["{limit}"]
            resource.setrlimit(resource.RLIMIT_{limit}, (limit, limit))
        # Small batches are sent without shared memory.
        return Example(Utterance("u", "", 60.0), torch.zeros(60 * 16000), [1, 2])

options = {{"num_workers": 2, "worker_init_fn": prepare_worker, "generator": torch.Generator()}}
batches = [[index] for index in range(4)]
try:
    list(NoticingLoader(dataset=Examples(), sampler=batches, notices={{}}, device=torch.device("cpu"), **options))
except RuntimeError as error:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    print(_as_user_error(error))
"""
LEFT = """
batches = iter(loader(range(100)))
next(batches)
raise SystemExit(143)
"""


def run(code):
    words = [sys.executable, "-c", LOADER + code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, start_new_session=True, cwd=REPO, **pipes) as process:
        try:
            return (*process.communicate(timeout=100), process.returncode)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_a_worker_that_cannot_send_its_batch_ends_and_the_error_names_the_option():
    # Without the end of the worker, the loader would wait without end.
    said, errors, _ = run(UNSENDABLE)
    assert said.startswith("data.num_workers: DataLoader worker")
    assert "exited unexpectedly" in said
    assert "/dev/shm" in said
    assert "a loader worker cannot send a batch: No space left on device" in errors


@pytest.mark.parametrize(("limit", "reason"), [("FSIZE", "File too large"), ("NOFILE", "Too many open files")])
def test_a_batch_without_room_in_shared_memory_or_without_a_file_gives_the_same_error(limit, reason):
    said, errors, _ = run(REFUSED.format(limit=limit))
    # If the other worker has ended, too, its batch before may be lost.
    assert said.startswith("data.num_workers: DataLoader worker"), errors
    assert "a loader worker cannot send a batch: " in errors
    assert reason in errors


def test_a_process_ends_with_the_workers_of_an_epoch_that_is_not_over():
    # Python's own end sends the workers one SIGTERM, which they take for that of their run, and waits for them.
    assert run(LEFT)[2] == 143


PERSISTENT = """
batches = DataLoader(range(100), batch_size=None, num_workers=2, worker_init_fn=prepare_worker, persistent_workers=True)
for _ in batches:
    pass
raise SystemExit(143)
"""


def test_workers_that_wait_for_the_next_epoch_end_without_a_word():
    said, errors, status = run(PERSISTENT)
    assert (said, errors, status) == ("", "", 143)
