"""Files behind addresses, such as ``s3://bucket/name`` and ``https://host/name``, read by fsspec.

Without a cache, each recording is a request for its bytes. With the environment variable ``SSL_ASR_SHARD_CACHE``, which
names a folder on a local disk, a file is downloaded whole when its first byte is read, once for all processes that use
the folder and for all epochs. Its name in the cache changes with the state of the file where the store tells it.
"""

import errno
import hashlib
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from filelock import FileLock

from ssl_asr.errors import ConfigError

CACHE = "SSL_ASR_SHARD_CACHE"
# Manifests come from others. fsspec knows many more protocols, of which some read local files or run code.
_PROTOCOLS = ("http", "https", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "hf", "oss", "memory")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
# Seconds before a request that failed is made again. Only for stores that have answered before.
_WAITS_S = (1.0, 4.0)
# Errors of the disk that a file is downloaded to.
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
# Opening a recording reads its first bytes several times.
_KEPT = 2

Result = TypeVar("Result")


class MediaError(Exception):
    """A file cannot be read. See `ssl_asr.errors.AudioError`, which adds the utterance."""

    def __init__(self, what: str, remedy: str, reason: str) -> None:
        super().__init__(what)
        self.what, self.remedy, self.reason = what, remedy, reason


class _Kept(threading.local):
    """The last bytes that this thread fetched."""

    def __init__(self) -> None:
        self.bytes: OrderedDict[tuple[str, int | None, int | None], bytes] = OrderedDict()


_kept = _Kept()
# Stores that have answered.
_reached: set[str] = set()


def is_remote(path: str) -> bool:
    """Whether a path is an address."""
    return "://" in path and _ADDRESS.match(path) is not None


def _file_system(address: str) -> tuple[Any, str]:
    """The file system of an address, as fsspec has it, and the path in it."""
    from fsspec.core import url_to_fs

    protocol = address.partition("://")[0].lower()
    if protocol not in _PROTOCOLS:
        known = ", ".join(_PROTOCOLS)
        raise MediaError(f"the protocol {protocol}:// is not supported", f"use one of {known}", "protocol")
    try:
        found: tuple[Any, str] = url_to_fs(address)
    except ImportError as error:
        # No utterance of the manifest could be read.
        raise ConfigError(f"{protocol}://", f"cannot be read: {error}", "install the package") from None
    return found


def _asked(address: str, request: Callable[[Any, str], Result]) -> Result:
    """The answer to a request, which is repeated if a store that has answered before does not answer."""
    store = "/".join(address.split("/", 3)[:3])
    for wait_s in (*(_WAITS_S if store in _reached else ()), None):
        try:
            answer = request(*_file_system(address))
        except (MediaError, ConfigError):
            raise
        except FileNotFoundError:
            raise MediaError(f"no such file at {address}", "check audio_filepath", "missing_file") from None
        # Each store has errors of its own, with no common base.
        except Exception as error:
            if getattr(error, "errno", None) in _DISK:
                raise
            if wait_s is None or isinstance(error, PermissionError):
                what = f"{address} cannot be read: {str(error) or type(error).__name__}"
                remedy = "check the address, the network and your permissions"
                raise MediaError(what, remedy, "unreachable") from None
            time.sleep(wait_s)
        else:
            _reached.add(store)
            return answer
    raise AssertionError("the last attempt returns or raises")


def fetched(address: str, start: int | None = None, end: int | None = None) -> bytes:
    """Bytes ``[start, end)`` of a file, or all. Fewer if the file ends before.

    Raises:
        MediaError: The file does not exist or cannot be reached.
    """
    local = local_copy(address)
    if local != address:
        with Path(local).open("rb") as file:
            file.seek(start or 0)
            return file.read() if end is None else file.read(end - (start or 0))
    key = (address, start, end)
    if key not in _kept.bytes:
        data = _asked(address, lambda store, path: bytes(store.cat_file(path, start=start, end=end)))
        if end is not None and start is not None and len(data) > end - start:
            what = f"{address} is on a server that sends whole files only, not parts of them"
            raise MediaError(what, f"set {CACHE}=FOLDER, which downloads whole shards", "no_ranges")
        _kept.bytes[key] = data
    _kept.bytes.move_to_end(key)
    while len(_kept.bytes) > _KEPT:
        _kept.bytes.popitem(last=False)
    return _kept.bytes[key]


def opened(address: str) -> BinaryIO:
    """A file to read from any position.

    Raises:
        MediaError: The file does not exist or cannot be reached.
    """
    return cast(BinaryIO, _asked(address, lambda store, path: store.open(path, "rb")))


@lru_cache(maxsize=65536)
def size_of(address: str) -> int:
    """Size of a file in bytes.

    Raises:
        MediaError: The file does not exist or cannot be reached.
    """
    size = _asked(address, lambda store, path: store.info(path)["size"])
    return len(fetched(address)) if size is None else int(size)


def local_copy(address: str) -> str:
    """Path of a file in the cache, where it is downloaded if need be. The address if there is no cache.

    Raises:
        MediaError: The file cannot be reached, or the cache cannot be written.
    """
    folder = os.environ.get(CACHE)
    if not folder:
        return address
    path = _copy_of(address, folder)
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):
                if not path.exists():
                    _download(address, path)
        except OSError as error:
            what = f"{address} cannot be kept in {folder}: {error.strerror or error}"
            raise MediaError(what, f"make room, or set {CACHE} to another folder", "cache") from None
    return str(path)


@lru_cache(maxsize=65536)
def _copy_of(address: str, folder: str) -> Path:
    state = _asked(address, lambda store, path: store.ukey(path))
    digest = hashlib.blake2b(f"{address}\n{state}".encode(), digest_size=16).hexdigest()
    return Path(folder) / f"{digest}{Path(address).suffix}"


def _download(address: str, path: Path) -> None:
    partial = path.with_name(f"{path.name}.partial")
    _asked(address, lambda store, source: store.get_file(source, str(partial)))
    size = _asked(address, lambda store, source: store.info(source)["size"])
    if size is not None and partial.stat().st_size != size:
        got = partial.stat().st_size
        what = f"{address} has {size:,} bytes, of which {got:,} were downloaded"
        raise MediaError(what, "try again", "unreachable")
    partial.replace(path)
