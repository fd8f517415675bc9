"""Two commands do not write the same files."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from ssl_asr.config import locks
from ssl_asr.config.locks import Lock, held, in_use
from ssl_asr.config.run_folder import other_run
from ssl_asr.errors import ConfigError
from tests.command_runner import REPO

HOLD = """
import os, sys, time
from pathlib import Path
from ssl_asr.config.locks import Lock, held
with held(Lock.of_folder(Path(sys.argv[1]), "run_dir")):
    if sys.argv[2] == "fork" and os.fork() == 0:
        time.sleep(1.5)
        os._exit(0)
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path):
    """A function that starts a process which holds the lock of a folder."""
    started = []

    def start(fork="no"):
        words = [sys.executable, "-c", HOLD, str(tmp_path), fork]
        environment = {**os.environ, "PYTHONPATH": str(REPO)}
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_lock_of_another_process_is_refused_and_names_it(hold, tmp_path):
    process = hold()
    lock = Lock.of_folder(tmp_path, "run_dir")
    for found in (in_use(lock), other_run("auto", tmp_path)):
        [error] = found
        assert f"run_dir: {tmp_path} is in use by process {process.pid} on {socket.gethostname()} since 20" in str(
            error
        )
        assert str(error).endswith("Wait until it ends, or choose another run_dir.")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError, match="is in use by process"), held(lock):
        pass
    assert sorted(tmp_path.iterdir()) == before
    assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == process.pid


def test_a_damaged_note_of_the_holder_is_left_out(hold, tmp_path, monkeypatch):
    """As a power cut or another program leaves it."""
    hold()
    monkeypatch.setattr(locks, "_WORKERS_END_S", 0.0)
    whole = json.loads((tmp_path / ".lock.json").read_text())
    damaged = [{**whole, "pid": pid} for pid in ("x", 0, -1, 1.5, None, True, 2**64)]
    for note in ("", "[]", "null", "[" * 100_000, "\0", json.dumps({"pid": 1}), *map(json.dumps, damaged)):
        (tmp_path / ".lock.json").write_text(note)
        [error] = in_use(Lock.of_folder(tmp_path, "run_dir"))
        assert str(error).startswith(f"run_dir: {tmp_path} is in use. Wait until it ends"), note


@pytest.mark.parametrize("fork", ["no", "fork"])
def test_lock_of_a_killed_process_is_taken_over(hold, tmp_path, fork):
    """Also if its workers live on for a while, as those of a data loader do."""
    process = hold(fork)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / ".lock.json").exists()
    with held(Lock.of_folder(tmp_path, "run_dir")):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_lock_of_an_output_is_beside_it_and_leaves_nothing(tmp_path):
    output = tmp_path / "new" / "sub" / "a.jsonl"
    other = Lock.of_output(tmp_path / "new" / ".." / "new" / "sub" / "a.jsonl")
    with held(Lock.of_output(output)), pytest.raises(ConfigError, match=r"output: .*a.jsonl is in use"), held(other):
        pass
    assert not list(tmp_path.iterdir())
    with held(Lock.of_output(output)):
        output.write_text("text")
    assert [path.name for path in output.parent.iterdir()] == ["a.jsonl"]


def test_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def acquire(self, timeout):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(locks.FileLock, "acquire", acquire)
    lock = Lock.of_folder(tmp_path, "run_dir")
    with pytest.warns(UserWarning, match="cannot be locked .Operation not supported."), held(lock):
        pass


def test_note_of_a_process_on_another_host_is_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_WORKERS_END_S", 0.01)
    with held(Lock.of_folder(tmp_path, "run_dir")):
        note = {"host": "another", "pid": 2**22 + 1, "since": "2026-01-01 00:00:00", "command": "ssl-asr train"}
        (tmp_path / ".lock.json").write_text(json.dumps(note))
        [error] = in_use(Lock.of_folder(tmp_path, "run_dir"))
        assert "by process 4194305 on another since 2026-01-01 00:00:00: ssl-asr train" in str(error)
