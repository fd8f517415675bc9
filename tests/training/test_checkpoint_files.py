"""Checkpoint files: never partial, never damaged without notice, and the one that a run continues from."""

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import zipfile

import pytest
import torch

from ssl_asr.config.launch import _as_user_error
from ssl_asr.console import Notice
from ssl_asr.errors import CheckpointError
from ssl_asr.textfiles import remove_partial, written_whole
from ssl_asr.training import checkpoint_files
from ssl_asr.training.checkpoint_files import FORMAT, KEY, checkpoint_to_resume, read_checkpoint, write_checkpoint
from ssl_asr.training.csv_log import ContinuedCsvLogger


def content(updates=3):
    return {KEY: {"format": FORMAT}, "weights": torch.arange(1000.0), "global_step": updates}


@pytest.fixture
def path(tmp_path):
    write_checkpoint(content(), tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_reading_returns_what_was_written(tmp_path):
    path = tmp_path / "new" / "a.ckpt"
    write_checkpoint(content(), path)
    assert torch.equal(read_checkpoint(path)["weights"], content()["weights"])
    assert [p.name for p in path.parent.iterdir()] == ["a.ckpt"]
    assert zipfile.ZipFile(path).testzip() is None, "other programs read the file too"


def test_every_changed_byte_is_found(path):
    data = path.read_bytes()
    # Each byte of the head and of the end, where the archive's index and the digest are, and some between them.
    places = [*range(100), *range(100, len(data) - 700, 97), *range(len(data) - 700, len(data))]
    for place in places:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(CheckpointError, match="is damaged|cannot be read"):
            read_checkpoint(path)
    path.write_bytes(data)
    read_checkpoint(path)


@pytest.mark.parametrize("left", [0, 1, 200, -1, -79, -100])
def test_file_that_was_cut_off_is_found(path, left):
    data = path.read_bytes()
    path.write_bytes(data[:left])
    with pytest.raises(CheckpointError, match="it is empty" if left == 0 else "is damaged|cannot be read"):
        read_checkpoint(path)


@pytest.mark.parametrize("sidecar", ["", "0" * 64])
def test_other_files_beside_a_checkpoint_do_not_matter(path, sidecar):
    """Checkpoints had their digest in a file of its own, which was lost or emptied apart from them."""
    path.with_name("a.ckpt.sha256").write_text(sidecar)
    read_checkpoint(path)


def test_archive_without_digest_is_refused(path):
    torch.save(content(), path)
    with pytest.raises(CheckpointError, match="is damaged: its sha256 is missing at its end"):
        read_checkpoint(path)


def test_files_of_other_programs_raise_checkpoint_error_and_run_no_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save({"x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "executed").exists()
    for other in ({"x": 1}, [1]):
        torch.save(other, tmp_path / "other.ckpt")
        with pytest.raises(CheckpointError, match="was not written by"):
            read_checkpoint(tmp_path / "other.ckpt")


def test_a_missing_checkpoint_names_the_newest_of_its_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"best.ckpt: no such checkpoint. Check the path\.$"):
        read_checkpoint(tmp_path / "best.ckpt")
    for name, when in (("last", 2), ("average", 1)):
        (tmp_path / f"{name}.ckpt").touch()
        os.utime(tmp_path / f"{name}.ckpt", (when, when))
    with pytest.raises(CheckpointError, match=r"no such checkpoint. Use .*last.ckpt, which is the newest"):
        read_checkpoint(tmp_path / "best.ckpt")


def test_a_file_that_is_no_checkpoint_gets_no_advice_of_torch(tmp_path):
    (tmp_path / "a.opus").write_bytes(b"OggS" + bytes(range(200)))
    with pytest.raises(CheckpointError, match="cannot be read: it is not a checkpoint") as caught:
        read_checkpoint(tmp_path / "a.opus")
    assert "weights_only" not in str(caught.value)


def test_kill_during_writing_leaves_the_previous_checkpoint(path):
    code = f"""
        import os, signal, pathlib, torch
        from ssl_asr.training import checkpoint_files
        def killed(fd):
            os.kill(os.getpid(), signal.SIGKILL)
        checkpoint_files.os.fsync = killed
        checkpoint_files.write_checkpoint({{"weights": torch.zeros(1000)}}, pathlib.Path({str(path)!r}))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert done.returncode == -signal.SIGKILL
    assert torch.equal(read_checkpoint(path)["weights"], content()["weights"])
    assert len(list(path.parent.iterdir())) == 2
    remove_partial([path.parent, path.parent / "none"])
    assert list(path.parent.iterdir()) == [path]


# Full disks --------------------------------------------------------------------------------------------------


@pytest.fixture
def full_disk():
    """Files cannot grow beyond 2,000 bytes in the test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_names_path_bytes_and_the_earlier_checkpoint(path, full_disk):
    before = path.read_bytes()
    for name in ("a.ckpt", "b.ckpt"):
        with pytest.raises(CheckpointError) as caught:
            write_checkpoint(content(4), path.with_name(name))
        said = re.fullmatch(
            r"(.*): cannot be written: File too large. It needs ([\d,]+) bytes, and [\d,]+ are free. "
            r"The earlier checkpoint (.*) is kept. Make room, and continue with resume=auto.",
            str(caught.value),
        )
        assert said.groups() == (str(path.with_name(name)), f"{len(before):,}", str(path))
    assert [(p, p.read_bytes()) for p in path.parent.iterdir()] == [(path, before)]


def test_first_checkpoint_on_a_full_disk_says_that_there_is_no_other(tmp_path, full_disk):
    with pytest.raises(CheckpointError, match="There is no earlier checkpoint"):
        write_checkpoint(content(), tmp_path / "new" / "a.ckpt")
    assert not list((tmp_path / "new").iterdir())


def test_full_disk_at_the_digest_is_an_error_too(path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint_files.os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        write_checkpoint(content(), path)
    assert list(path.parent.iterdir()) == [path]


def test_other_files_on_a_full_disk_are_named(tmp_path, full_disk):
    target = tmp_path / "predictions.jsonl"
    with pytest.raises(OSError, match="too large") as caught, written_whole(target) as file:
        file.write("x" * 5000)
    assert str(_as_user_error(caught.value)).startswith(f"{target}: File too large. Make room")
    assert not list(tmp_path.iterdir())
    logger = ContinuedCsvLogger(save_dir=tmp_path, name="", version="metrics")
    for step in range(99):
        logger.log_metrics({"a metric with a long name": 1.0 / (step + 1)}, step=step)
    with pytest.raises(OSError, match="too large") as caught:
        logger.save()
    assert caught.value.filename == str(tmp_path / "metrics" / "metrics.csv")


# resume=auto -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path):
    for name, updates in (("last", 9), ("best", 6), ("top-epoch0-step3", 3), ("average", 9)):
        write_checkpoint(content(updates), tmp_path / "checkpoints" / f"{name}.ckpt")
    return tmp_path


def damage(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_auto_continues_from_the_last_checkpoint(run):
    found = checkpoint_to_resume("auto", run)
    assert (found.path, found.updates) == (run / "checkpoints" / "last.ckpt", 9)


def test_auto_falls_back_to_the_undamaged_checkpoint_with_the_most_updates_and_names_both(run):
    folder = run / "checkpoints"
    damage(folder / "last.ckpt")
    with pytest.warns(Notice) as caught:
        found = checkpoint_to_resume("auto", run)
    assert found.path == folder / "best.ckpt"
    said = str(caught[0].message)
    assert f"{folder}/last.ckpt: is damaged" in said
    assert f"The run continues from {folder}/best.ckpt, after update 6." in said
    (folder / "best.ckpt").write_bytes(b"")
    with pytest.warns(Notice, match=r"best.ckpt: cannot be read: it is empty.*top-epoch0-step3.ckpt, after update 3"):
        assert checkpoint_to_resume("auto", run).updates == 3


def test_auto_does_not_start_again_over_damaged_checkpoints(run):
    for path in (run / "checkpoints").iterdir():
        damage(path)
    with pytest.raises(CheckpointError, match="resume: auto found no checkpoint that can be used. .*last.ckpt: is"):
        checkpoint_to_resume("auto", run)


def test_auto_continues_a_run_that_was_stopped_before_its_last_checkpoint(run, recwarn):
    (run / "checkpoints" / "last.ckpt").unlink()
    assert checkpoint_to_resume("auto", run).updates == 6
    assert not recwarn


def test_named_checkpoint_is_never_replaced_by_another(run):
    damage(run / "checkpoints" / "last.ckpt")
    with pytest.raises(CheckpointError, match="last.ckpt: is damaged"):
        checkpoint_to_resume(str(run / "checkpoints" / "last.ckpt"), run)


def test_new_run_has_no_checkpoint(run):
    assert checkpoint_to_resume(None, run) is None
    shutil.rmtree(run / "checkpoints")
    assert checkpoint_to_resume("auto", run) is None


def test_a_folder_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a folder. Give a file, as .*last.ckpt"):
        read_checkpoint(tmp_path)
