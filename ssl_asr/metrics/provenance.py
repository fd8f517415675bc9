"""Where results come from: the command, versions, the git commit, the machine, and times."""

import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from typing import Any

_PACKAGES = ("ssl_asr", "torch", "torchaudio", "lightning", "transformers", "hydra-core", "numpy")
_PACKAGE_FOLDER = Path(__file__).parent.parent


class Clock:
    """Start of a command, and the record of its run.

    Example:
        >>> sorted(Clock().record())
        ['command', 'finished', 'git', 'platform', 'seconds', 'started', 'versions']
    """

    def __init__(self) -> None:
        self.started = datetime.now(UTC)
        # The checkout may change while the command runs.
        self.git = git_commit(_PACKAGE_FOLDER)

    def record(self) -> dict[str, Any]:
        """Plain data about the run up to now. Times are in UTC, in ISO 8601."""
        finished = datetime.now(UTC)
        return {
            "command": typed_command(sys.orig_argv),
            "started": self.started.isoformat(timespec="seconds"),
            "finished": finished.isoformat(timespec="seconds"),
            "seconds": round((finished - self.started).total_seconds(), 1),
            "versions": {"python": platform.python_version(), **_versions()},
            "git": self.git,
            "platform": platform.platform(),
        }


def typed_command(words: Sequence[str]) -> str:
    """The command line of this process, as it can be typed again. The script ``ssl-asr`` is shown by its name.

    Args:
        words: `sys.orig_argv`, since commands change `sys.argv`.

    Example:
        >>> typed_command(["/usr/bin/python3", "/usr/bin/ssl-asr", "evaluate", "model=my run"])
        "ssl-asr evaluate 'model=my run'"
    """
    # What follows -m is a module and its arguments, which may be paths of this name.
    before = takewhile(lambda word: word != "-m", words)
    script = next((place for place, word in enumerate(before) if Path(word).name == "ssl-asr"), None)
    return shlex.join(words if script is None else ["ssl-asr", *words[script + 1 :]])


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit(folder: Path) -> dict[str, Any] | None:
    """The commit that a folder is checked out at, and whether tracked files differ from it. None without git."""
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", ".")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": changed != ""}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
