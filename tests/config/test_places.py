"""Outputs that cannot be written are refused before any work; other errors of the file system have no traceback."""

import errno

import pytest

from ssl_asr.config.launch import _as_user_error
from ssl_asr.errors import ConfigError
from ssl_asr.textfiles import why_not_made

LONG = "L" * 300


@pytest.mark.parametrize(
    ("command", "key", "value", "message"),
    [
        ("lm", "output", "folder", "folder is a folder, and a file is needed"),
        ("lm", "output", f"{LONG}.arpa", "is too long"),
        ("lm", "output", "/proc/y.arpa", "/proc/y.arpa cannot be written"),
        ("tune_decoding", "output", "/proc/d.yaml", "/proc/d.yaml cannot be written"),
        ("compare", "output", "file/x.json", "file is not a folder"),
        ("extract", "output_dir", "file", "file is a file, and a folder is needed"),
        ("check", "output_dir", "file", "file is a file, and a folder is needed"),
        ("corpus", "output_dir", "file", "file is a file, and a folder is needed"),
        ("evaluate", "output_dir", "file/x", "file is not a folder"),
        ("train", "run_dir", "file", "file is a file, and a folder is needed"),
        ("train", "run_dir", "file/x", "file is not a folder"),
        ("train", "run_dir", "a_run", "checkpoints is a file, and a folder is needed"),
        ("train", "run_dir", "other", "results.json is a folder, and a file is needed"),
        ("evaluate", "output_dir", "a_run", "checkpoints is a file"),
        ("evaluate", "output_dir", "locked", ".lock is a folder, and a file is needed"),
        ("train", "run_dir", LONG, "is too long"),
        ("train", "run_dir", "/proc/xx", "/proc/xx cannot be written"),
    ],
)
def test_outputs_that_cannot_be_made_are_refused(tmp_path, monkeypatch, command, key, value, message):
    from omegaconf import OmegaConf

    from ssl_asr.config.found import file_errors

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for name in ("a_run", "other/results.json", "locked/.lock"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a_run" / "checkpoints").touch()
    [error] = file_errors(command, OmegaConf.create({key: value}))
    assert isinstance(error, ConfigError)
    assert error.where == key
    assert message in str(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a_run", "file", "folder", "locked", "other"]


def test_what_can_be_made_is_not_made(tmp_path):
    assert why_not_made(tmp_path / "a" / "b.txt", folder=False) is None
    assert why_not_made(tmp_path / "a" / "b", folder=True) is None
    assert why_not_made(tmp_path, folder=True) is None
    assert not list(tmp_path.iterdir())


def test_errors_of_the_file_system_name_the_file_and_what_to_do():
    said = str(_as_user_error(OSError(errno.EACCES, "Permission denied", "a/b")))
    assert said == "a/b: Permission denied. Check the path and its permissions."
    said = str(_as_user_error(OSError(errno.ENOSPC, "No space left on device")))
    assert said == "a file: No space left on device. Make room, and run the command again."
    with pytest.raises(BrokenPipeError):
        _as_user_error(BrokenPipeError(errno.EPIPE, "Broken pipe"))


class OutOfMemoryError(RuntimeError):
    """torch's error of a GPU has this name."""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:119] . DefaultCPUAllocator: can't allocate memory\nmore"),
    ],
)
def test_too_little_memory_is_one_line_with_a_remedy(error):
    said = str(_as_user_error(error))
    assert said.startswith("memory: is not enough: ")
    assert said.endswith("Use a smaller max_batch_s, beam_size, window or model.")
    assert "\n" not in said


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a fault of ours"):
        _as_user_error(RuntimeError("a fault of ours"))
