"""Checkpoints that are written in the background while training goes on."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections import OrderedDict

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from ssl_asr.console import Notice
from ssl_asr.errors import CheckpointError
from ssl_asr.training import checkpoint_files, checkpoint_io
from ssl_asr.training.checkpoint_files import FORMAT, KEY, read_checkpoint, write_checkpoint
from ssl_asr.training.checkpoint_io import BackgroundCheckpointIO, HostCopies
from tests.training.toy_runs import build, toy_overrides


def content(value=1.0, size=1000):
    return {"weights": torch.full((size,), value), "best": {"a.ckpt": value}, KEY: {"format": FORMAT}}


@pytest.fixture
def io():
    one = BackgroundCheckpointIO()
    one.in_background = True
    yield one
    one._jobs.clear()
    one.teardown()


@pytest.fixture
def gate(monkeypatch):
    """Background writes start when the event is set."""
    event, plain = threading.Event(), checkpoint_io.write_checkpoint

    def waiting(checkpoint, path):
        assert event.wait(60)
        plain(checkpoint, path)

    monkeypatch.setattr(checkpoint_io, "write_checkpoint", waiting)
    yield event
    event.set()


@pytest.fixture
def full_disk(monkeypatch):
    """A disk that gets full while a file is written."""

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return lambda: monkeypatch.setattr(checkpoint_files.os, "fsync", full)


# The copy ------------------------------------------------------------------------------------------------------


def test_file_of_a_copy_equals_the_file_of_the_original(tmp_path):
    """With tied weights, views, weights in 16 bits, empty tensors, and the versions of modules."""
    module = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    module[2].weight = module[0].weight
    optimizer = torch.optim.AdamW(module.parameters(), lr=torch.tensor(0.1))
    module(torch.randn(8, 4)).sum().backward()
    optimizer.step()
    base = torch.arange(24.0).to(torch.bfloat16)
    checkpoint = {
        "state_dict": module.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "views": [base.view(4, 6).T, base[3:5], torch.empty(0), torch.tensor(3)],
        "plain": ({"a": (1, 0.5, None, "b")}, OrderedDict(c=[True])),
    }
    copied, event = HostCopies().copy(checkpoint)
    assert event is None
    assert copied["state_dict"]._metadata == checkpoint["state_dict"]._metadata
    for name, each in (("original", checkpoint), ("copy", copied)):
        write_checkpoint(each, tmp_path / name / "a.ckpt")
    assert (tmp_path / "copy" / "a.ckpt").read_bytes() == (tmp_path / "original" / "a.ckpt").read_bytes()


def test_memory_of_a_copy_is_used_again():
    copies = HostCopies()
    places = []
    for value in (1.0, 2.0):
        copied, _ = copies.copy({"a": torch.full((7,), value), "b": torch.full((7,), -value), "c": torch.ones(3)})
        assert (copied["a"][0], copied["b"][0]) == (value, -value)
        places.append({copied[key].data_ptr() for key in "abc"})
    assert places[0] == places[1]
    assert len(places[0]) == 3
    assert copies.copy({"a": torch.ones(9)})[0]["a"].shape == (9,)
    assert len(copies._buffers) == 1, "sizes that are no longer needed are freed"


# One file after the other ----------------------------------------------------------------------------------------


def test_file_has_the_values_of_the_moment_of_saving(io, gate, tmp_path):
    checkpoint = content(1.0)
    io.save_checkpoint(checkpoint, tmp_path / "a.ckpt")
    checkpoint["weights"].add_(1.0)
    checkpoint["best"]["b.ckpt"] = 2.0
    assert not list(tmp_path.iterdir())
    gate.set()
    io.wait()
    found = read_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(found["weights"], content(1.0)["weights"])
    assert found["best"] == {"a.ckpt": 1.0}


def test_next_checkpoint_waits_for_the_one_before(io, gate, tmp_path):
    io.save_checkpoint(content(1.0), tmp_path / "a.ckpt")
    threading.Timer(0.2, gate.set).start()
    io.save_checkpoint(content(2.0), tmp_path / "b.ckpt")
    assert torch.equal(read_checkpoint(tmp_path / "a.ckpt")["weights"], content(1.0)["weights"])
    assert io.waited_s > 0.1
    assert torch.equal(io.load_checkpoint(tmp_path / "b.ckpt")["weights"], content(2.0)["weights"])


def test_old_checkpoint_is_removed_after_the_new_one_is_written(io, gate, tmp_path):
    write_checkpoint(content(1.0), tmp_path / "old.ckpt")
    io.save_checkpoint(content(2.0), tmp_path / "new.ckpt")
    io.remove_checkpoint(tmp_path / "old.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["old.ckpt"]
    gate.set()
    io.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["new.ckpt"]
    io.remove_checkpoint(tmp_path / "new.ckpt")
    assert not list(tmp_path.iterdir())


def test_old_checkpoint_is_kept_if_the_new_one_cannot_be_written(io, full_disk, tmp_path):
    write_checkpoint(content(1.0), tmp_path / "old.ckpt")
    full_disk()
    io.save_checkpoint(content(2.0), tmp_path / "new.ckpt")
    io.remove_checkpoint(tmp_path / "old.ckpt")
    with pytest.raises(CheckpointError, match="No space left"):
        io.wait()
    io.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["old.ckpt"]


def test_kill_during_writing_leaves_the_old_checkpoint(tmp_path):
    code = f"""
        import os, pathlib, signal, torch
        from ssl_asr.training import checkpoint_files
        from ssl_asr.training.checkpoint_io import BackgroundCheckpointIO
        folder, io = pathlib.Path({str(tmp_path)!r}), BackgroundCheckpointIO()
        io.save_checkpoint({{"weights": torch.zeros(9), "ssl_asr": {{"format": {FORMAT}}}}}, folder / "old.ckpt")
        checkpoint_files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        io.in_background = True
        io.save_checkpoint({{"weights": torch.ones(9)}}, folder / "new.ckpt")
        io.remove_checkpoint(folder / "old.ckpt")
        io.wait()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert done.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["old.ckpt"]
    assert torch.equal(read_checkpoint(tmp_path / "old.ckpt")["weights"], torch.zeros(9))


# Errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["check", "wait", "save", "load", "teardown"])
def test_error_of_a_write_is_raised_once(io, full_disk, tmp_path, moment):
    full_disk()
    io.save_checkpoint(content(), tmp_path / "a.ckpt")
    checkpoint_io.wait_for(io._jobs)
    next_safe_moment = {
        "check": io.check,
        "wait": io.wait,
        "save": lambda: io.save_checkpoint(content(), tmp_path / "b.ckpt"),
        "load": lambda: io.load_checkpoint(tmp_path / "a.ckpt"),
        "teardown": io.teardown,
    }[moment]
    with pytest.raises(CheckpointError, match=r"a.ckpt: cannot be written: No space left on device. It needs"):
        next_safe_moment()
    io.wait()
    assert not list(tmp_path.iterdir())


def test_error_of_a_write_does_not_hide_the_exception_that_ends_training(io, full_disk, tmp_path):
    full_disk()
    io.save_checkpoint(content(), tmp_path / "a.ckpt")

    def ended():
        try:
            raise RuntimeError("the reason")
        except RuntimeError:
            io.teardown()
            raise

    with pytest.warns(Notice, match=r"a.ckpt: cannot be written"), pytest.raises(RuntimeError, match="the reason"):
        ended()


# Training --------------------------------------------------------------------------------------------------------


class Opens(Callback):
    """Lets writes start when an update is made."""

    def __init__(self, gate, update):
        self.gate, self.update = gate, update

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.update:
            self.gate.set()


@pytest.fixture
def overrides(toy_checkpoints, toy_corpus):
    toy = toy_overrides(toy_checkpoints["wav2vec2_group"], toy_corpus)
    more = ["freeze=false", "head.dropout=0.3", "data.max_batch_s=2", "trainer.checkpoint_every_n_updates=2"]
    return [*toy, *more]


def test_updates_do_not_wait_for_a_slow_disk(overrides, gate, tmp_path, monkeypatch):
    """The checkpoint of update 2 is not written before update 4, and has the weights of update 2."""
    overrides = [*overrides, "data.dev=null"]
    run = build(tmp_path / "a", *overrides, "trainer.max_steps=4")
    plain, seen = checkpoint_io.write_checkpoint, {}

    def written(checkpoint, path):
        plain(checkpoint, path)
        found = read_checkpoint(path)
        seen[found["global_step"]] = found["state_dict"]

    monkeypatch.setattr(checkpoint_io, "write_checkpoint", written)
    # Before the checkpoint of update 4, which waits for that of update 2.
    run.trainer.callbacks.insert(0, Opens(gate, 4))
    run.trainer.fit(run.module, datamodule=run.data)
    assert sorted(seen) == [2, 4]
    gate.set()
    short = build(tmp_path / "b", *overrides, "trainer.max_steps=2")
    # The same schedules, so that its last update is update 2 of the other run.
    short.module.set_total_updates(run.module.total_updates)
    short.trainer.fit(short.module, datamodule=short.data)
    for name, value in short.module.state_dict().items():
        assert torch.equal(seen[2][name], value), name
    for name, value in run.module.state_dict().items():
        assert torch.equal(seen[4][name], value), name


def test_full_disk_ends_training_and_keeps_the_checkpoint_before(overrides, full_disk, tmp_path):
    run = build(tmp_path, *overrides)

    class Fills(Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 3:
                full_disk()

    run.trainer.callbacks.insert(0, Fills())
    with pytest.raises(CheckpointError, match=r"last.ckpt: cannot be written: No space left on device"):
        run.trainer.fit(run.module, datamodule=run.data)
    folder = tmp_path / "checkpoints"
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 2
    assert not list(folder.glob(".*"))


def test_training_that_ends_by_an_error_waits_for_its_checkpoint(overrides, gate, tmp_path):
    run = build(tmp_path, *overrides)

    class Fails(Callback):
        def on_train_batch_start(self, trainer, *_):
            if trainer.global_step == 3:
                threading.Timer(0.2, gate.set).start()
                raise RuntimeError("an error")

    run.trainer.callbacks.insert(0, Fails())
    with pytest.raises(RuntimeError, match="an error"):
        run.trainer.fit(run.module, datamodule=run.data)
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 2
