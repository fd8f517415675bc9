"""Downloads of corpora: continued where they stopped, and checked by the digest that the corpus publishes.

A file gets its name when its digest is right::

    FOLDER/name.tar.gz.part  ->  FOLDER/name.tar.gz
"""

import hashlib
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote, urlsplit

from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

from ssl_asr.errors import ConfigError, did_you_mean

_BLOCK_BYTES = 1 << 20
_TIMEOUT_S = 60
# What a server or the network causes. Other errors of the system, such as a full disk, are reported as they are.
_NETWORK = (urllib.error.URLError, ssl.SSLError, TimeoutError, ConnectionError, HTTPException, ValueError)
_OPENSLR = "https://www.openslr.org/resources"


@dataclass(frozen=True, slots=True)
class Remote:
    """A file to download: its address, and its digest as ``md5:…`` or ``sha256:…``. None: there is no digest."""

    url: str
    digest: str | None

    @property
    def name(self) -> str:
        """Name of the file."""
        return Path(unquote(urlsplit(self.url).path)).name.strip(".") or "download"


def _librispeech() -> dict[str, Remote]:
    digests = {
        "dev-clean": "76f87d090650617fca0cac8f88b9416e0ebf80350acb97b343a85fa903728ab3",
        "dev-other": "12661c48e8c3fe1de2c1caa4c3e135193bfb1811584f11f569dd12645aa84365",
        "test-clean": "39fde525e59672dc6d1551919b1478f724438a95aa55f874b576be21967e6c23",
        "test-other": "d09c181bba5cf717b3dee7d4d592af11a3ee3a09e08ae025c5506f6ebe961c29",
        "train-clean-100": "d4ddd1d5a6ab303066f14971d768ee43278a5f2a0aa43dc716b0e64ecbbbf6e2",
        "train-clean-360": "146a56496217e96c14334a160df97fffedd6e0a04e66b9c5af0d40be3c792ecf",
        "train-other-500": "ddb22f27f96ec163645d53215559df6aa36515f26e01dd70798188350adcb6d2",
    }
    return {
        f"librispeech:{part}": Remote(f"{_OPENSLR}/12/{part}.tar.gz", f"sha256:{digest}")
        for part, digest in digests.items()
    }


# Digests are those that OpenSLR and torchaudio publish.
CORPORA: Mapping[str, Remote] = MappingProxyType(
    {
        **_librispeech(),
        "mini_librispeech:dev-clean-2": Remote(
            f"{_OPENSLR}/31/dev-clean-2.tar.gz", "md5:6d7ab67ac6a1d2c993d050e16d61080d"
        ),
        "mini_librispeech:train-clean-5": Remote(
            f"{_OPENSLR}/31/train-clean-5.tar.gz", "md5:5df7d4e78065366204ca6845bb08f490"
        ),
        "tedlium3": Remote(
            f"{_OPENSLR}/51/TEDLIUM_release-3.tgz",
            "sha256:ad1e454d14d1ad550bc2564c462d87c7a7ec83d4dc2b9210f22ab4973b9eccdb",
        ),
        "ljspeech": Remote(
            "https://data.keithito.com/data/speech/LJSpeech-1.1.tar.bz2",
            "sha256:be1a30453f28eb8dd26af4101ae40cbf2c50413b1bb21936cbcdc6fae3de8aa5",
        ),
    }
)
"""Corpora that can be downloaded by name."""


def remote_of(name: str, digest: str | None = None) -> Remote | None:
    """The download that an input names: an address, or the name of a corpus. None for anything else.

    Raises:
        ConfigError: The address is malformed, or the corpus has no such part.

    Example:
        >>> remote_of("https://example.org/a.zip").name, remote_of("folder")
        ('a.zip', None)
    """
    if name.startswith(("https://", "http://")):
        if not _has_host(name):
            raise ConfigError("input", f"{name} is no address", "check the address")
        return Remote(name, digest)
    if name in CORPORA:
        return CORPORA[name]
    corpus = name.partition(":")[0]
    if ":" in name and any(known.startswith(f"{corpus}:") for known in CORPORA):
        raise ConfigError("input", f"no corpus '{name}'", did_you_mean(name, list(CORPORA)))
    return None


def _has_host(url: str) -> bool:
    try:
        return bool(urlsplit(url).hostname)
    except ValueError:
        return False


def download(remote: Remote, folder: Path, *, progress: bool = False) -> Path:
    """Download a file, and return its path. A file that is there with the right digest is not downloaded again.

    Args:
        remote: What to download.
        folder: Folder that gets the file.
        progress: Whether to show a progress bar.

    Raises:
        ConfigError: The server cannot be reached, or the file has another digest.
    """
    target = folder / remote.name
    if target.is_file():
        _check(remote, target, "remove it, and run the command again")
        return target
    partial = target.with_name(f"{target.name}.part")
    try:
        _fetch(remote.url, partial, progress=progress)
    except _NETWORK as error:
        got = f" after {partial.stat().st_size:,} bytes" if partial.is_file() else ""
        what = f"{remote.url} cannot be downloaded{got}: {getattr(error, 'reason', error)}"
        remedy = "check the network and run the command again, which continues; or give a folder or an archive"
        raise ConfigError("input", what, remedy) from None
    try:
        _check(remote, partial, "run the command again")
    except ConfigError:
        partial.unlink()
        raise
    partial.replace(target)
    return target


def _fetch(url: str, partial: Path, *, progress: bool) -> None:
    """Download to a file, from its end on if the server can."""
    have = partial.stat().st_size if partial.is_file() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        # The file has as many bytes as the server has, or more, which the digest tells.
        if error.code == 416 and have:
            return
        raise
    with response:
        continues = response.status == 206
        length = response.headers.get("Content-Length")
        start = have if continues else 0
        total = None if length is None else start + int(length)
        partial.parent.mkdir(parents=True, exist_ok=True)
        columns = (*Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn())
        mode = "ab" if continues else "wb"
        with Progress(*columns, disable=not progress) as bar, partial.open(mode) as file:
            task = bar.add_task(partial.name.removesuffix(".part"), total=total, completed=start)
            while block := response.read(_BLOCK_BYTES):
                file.write(block)
                bar.advance(task, len(block))
            if total is not None and file.tell() < total:
                raise ConnectionError(f"the connection ended at {file.tell():,} of {total:,} bytes")


def _check(remote: Remote, path: Path, remedy: str) -> None:
    """Compare the digest of a file.

    Raises:
        ConfigError: It is another one.
    """
    if remote.digest is None:
        return
    kind, _, wanted = remote.digest.partition(":")
    digest: Any = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    if digest.hexdigest() != wanted.lower():
        what = f"{path} has the {kind} digest {digest.hexdigest()}, expected {wanted}"
        raise ConfigError("input", what, remedy)
