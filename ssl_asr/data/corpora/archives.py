"""Archives of corpora, extracted safely: no file or link leads out of the folder, and the size is bounded.

A folder gets its name when everything is there, and an interrupted extraction is repeated::

    corpus.tar.gz  ->  FOLDER.partial/…  ->  FOLDER/…
"""

import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from rich.progress import Progress

from ssl_asr.console import shows_bars
from ssl_asr.errors import ManifestError

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
# Audio hardly shrinks, and text shrinks to a tenth. An archive that grows more than this is made to fill the disk.
_MOST_GROWTH = 100
_LEAST_LIMIT = 1 << 30
_MOST_FILES = 20_000_000
_ORIGIN = ".archive"


def is_archive(path: Path) -> bool:
    """Whether a file has the suffix of a tar or zip archive."""
    return path.name.lower().endswith(_SUFFIXES) and path.is_file()


def stem_of(path: Path) -> str:
    """Name of an archive without its suffixes."""
    name = path.name
    suffix = max((each for each in _SUFFIXES if name.lower().endswith(each)), key=len, default="")
    return name[: len(name) - len(suffix)] or name


def extract(archive: Path, folder: Path, *, progress: bool = False, limit: int | None = None) -> Path:
    """Extract an archive into a folder of its name, and return that folder. It is not extracted again if it is there.

    Args:
        archive: A tar archive, compressed or not, or a zip archive.
        folder: Folder that gets the extracted folder.
        progress: Whether to show a progress bar.
        limit: Most bytes that are written. Default: None (100 times the size of the archive, or the free space).

    Raises:
        ManifestError: The archive is damaged, has a path or a link out of its folder, holds a device, or is too large.
    """
    target = folder / stem_of(archive)
    size = archive.stat().st_size
    origin = f"{archive.name} {size}\n"
    mark = target / _ORIGIN
    if mark.is_file() and mark.read_text(encoding="utf-8") == origin:
        return target
    if target.exists():
        raise ManifestError(str(target), f"is there, and is not what {archive} holds", "remove it, or rename it")
    folder.mkdir(parents=True, exist_ok=True)
    room = min(shutil.disk_usage(folder).free, max(_LEAST_LIMIT, _MOST_GROWTH * size))
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with Progress(transient=True, disable=not (progress and shows_bars())) as bar:
            task = bar.add_task(f"extract {archive.name}", total=size)
            with archive.open("rb") as file:
                writer = _Writer(archive, partial, limit if limit is not None else room)
                for at in writer.write_all(file):
                    bar.update(task, completed=at)
        (partial / _ORIGIN).write_text(origin, encoding="utf-8")
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def _unsafe(entry: tarfile.TarInfo) -> str | None:
    """Why a member of an archive must not be extracted, or None. ``tarfile.data_filter`` is new in Python 3.11.4."""
    path = PurePosixPath(entry.name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in entry.name.split("/")[0]:
        return f"{entry.name!r} leads out of the folder"
    # Corpora have files and folders. A link could lead out, or be written through by a later member.
    return None if entry.isreg() or entry.isdir() else f"{entry.name!r} is a link or a device"


class _Writer:
    """Writes the members of an archive, and counts their bytes."""

    def __init__(self, archive: Path, folder: Path, limit: int) -> None:
        self._archive, self._folder, self._limit = archive, folder, limit
        self._written, self._files = 0, 0

    def write_all(self, file: IO[bytes]) -> Iterator[int]:
        """Write all members. Yields the position in the archive."""
        try:
            if self._archive.name.lower().endswith(".zip"):
                with zipfile.ZipFile(file) as packed:
                    for member in packed.infolist():
                        self._write_zipped(packed, member)
                        yield file.tell()
            else:
                with tarfile.open(fileobj=file, mode="r:*") as tar:
                    for entry in tar:
                        self._count(entry.name, entry.size)
                        self._write_tarred(tar, entry)
                        yield file.tell()
                    self._check_end(file, tar)
        except (tarfile.ReadError, zipfile.BadZipFile, EOFError, KeyError, zlib.error, lzma.LZMAError) as error:
            raise self._error(f"is damaged or no archive: {error}", "get it again") from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise self._error(f"is damaged: {error}", "get it again") from None

    def _check_end(self, file: IO[bytes], tar: tarfile.TarFile) -> None:
        """An archive that is cut between two members looks whole to the library: it has no blocks of zeros at the end.

        Raises:
            ManifestError: The end is missing.
        """
        stream: Any = tar.fileobj
        # The block at `offset` was read last. Seeking to it would decompress the archive again.
        if stream.tell() < tar.offset + tarfile.BLOCKSIZE:
            raise self._error("ends early", "get it again")
        # A compressed stream that is cut raises EOFError when it is read to its end.
        while stream.read(1 << 20):
            pass

    def _error(self, what: str, remedy: str) -> ManifestError:
        return ManifestError(str(self._archive), what, remedy)

    def _count(self, name: str, size: int) -> None:
        self._files += 1
        self._written += max(0, size)
        if self._written > self._limit or self._files > _MOST_FILES:
            what = f"would write more than {self._limit:,} bytes (at {name})"
            raise self._error(what, "make room, or extract it yourself and give the folder")

    def _write_tarred(self, tar: tarfile.TarFile, entry: tarfile.TarInfo) -> None:
        fault = _unsafe(entry)
        if fault is not None:
            raise self._error(f"is not safe to extract: {fault}", "get it from a source that you trust")
        # Newer versions of Python warn of extraction without a filter.
        tar.extraction_filter = lambda member, _: member
        # Owners and modes in an archive are those of another machine.
        tar.extract(entry, self._folder, set_attrs=False)

    def _write_zipped(self, packed: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
        name = member.filename.replace("\\", "/")
        path = PurePosixPath(name)
        mode = member.external_attr >> 16
        if path.is_absolute() or ".." in path.parts or ":" in name.split("/")[0] or (mode and stat.S_ISLNK(mode)):
            raise self._error(f"is not safe to extract: {member.filename!r}", "get it from a source that you trust")
        target = self._folder / path
        if member.is_dir():
            target.mkdir(parents=True, exist_ok=True)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        self._count(name, 0)
        try:
            source = packed.open(member)
        except (RuntimeError, NotImplementedError) as error:
            raise self._error(f"cannot be read: {error}", "extract it yourself, and give the folder") from None
        with source, target.open("wb") as file:
            while block := source.read(1 << 20):
                # Sizes in the header may be wrong, so what is written is counted.
                self._files -= 1
                self._count(name, len(block))
                file.write(block)
