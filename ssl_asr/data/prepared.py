"""Folders of preparations: what an earlier one wrote, and that two are never mixed."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from ssl_asr.data.folders import printable
from ssl_asr.errors import ConfigError, ManifestError, overwrites
from ssl_asr.textfiles import written_whole

# File beside the manifests that lists what a preparation wrote.
RECORD = ".prepare.json"
_NAME = re.compile(r"\w[\w.-]*")


def written_before(folder: Path) -> list[str]:
    """Names of what an earlier preparation wrote in a folder, and what is still there."""
    try:
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        names = [name for name in found["files"] if isinstance(name, str) and _NAME.fullmatch(name)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in names if os.path.lexists(folder / name)]


def check_folder(folder: Path, *, overwrite: bool, inputs: Iterable[Path]) -> None:
    """Refuse a folder that holds another preparation, unless it may be replaced and is no input.

    Raises:
        ConfigError: It may not be replaced.
    """
    names = written_before(folder)
    if not names:
        return
    if not overwrite:
        some = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        what = f"{folder} already holds a preparation ({some})"
        raise ConfigError("output_dir", what, "choose another output_dir, or write overwrite=true to replace it")
    for read in (path.resolve() for path in inputs):
        for path in (folder / name for name in names):
            if read == folder.resolve() or read.is_relative_to(path.resolve()):
                raise overwrites(path, "output_dir")


def check_outputs(folder: Path, names: Sequence[str], splits: Sequence[str]) -> None:
    """Refuse to replace anything but what an earlier preparation wrote, and splits whose names are no names of files.

    Args:
        folder: The output folder.
        names: Names of what is written for each split, with ``{}`` for the split.
        splits: Names of the splits.

    Raises:
        ConfigError: A file or folder is already there.
        ManifestError: A split has an unusable name.
    """
    for split in splits:
        if _NAME.fullmatch(split) is None or len(split) > 100:
            what = f"'{printable(split)[:40]}' cannot be the name of a file"
            raise ManifestError("split", what, "use letters, digits, _ - and dots")
    before = {folder / name for name in written_before(folder)}
    for path in (folder / name.format(split) for split in splits for name in names):
        if os.path.lexists(path) and path not in before:
            raise ConfigError("output_dir", f"{path} is already there", "give another folder, or remove it")


def move_in(staging: Path, folder: Path, names: Sequence[str], *, inputs: Sequence[str]) -> None:
    """Move what is written to its folder, in place of an earlier preparation.

    Args:
        staging: Folder of what is written.
        folder: The output folder.
        names: What is moved.
        inputs: What it was made of, for the record.
    """
    before = written_before(folder)
    _note(folder, inputs, [*before, *names])
    for name in before:
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink()
    for name in names:
        (staging / name).rename(folder / name)
    _note(folder, inputs, names)


def _note(folder: Path, inputs: Sequence[str], names: Sequence[str]) -> None:
    with written_whole(folder / RECORD) as file:
        json.dump({"input": [printable(name) for name in inputs], "files": list(names)}, file)
