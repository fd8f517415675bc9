"""Confine the audio of a manifest to a folder."""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

from ssl_asr.data.files import Location
from ssl_asr.data.remote import is_remote
from ssl_asr.errors import ConfigError, ManifestError, raise_all
from ssl_asr.textfiles import shown
from ssl_asr.types import Utterance


def check_confined(utterances: Iterable[Utterance], root: str | Path, *, key: str = "root") -> None:
    """Check that all audio lies in a folder or below it. Symbolic links are resolved, and no audio is opened.

    Members of a tar lie where the tar does. Audio behind an address lies in no folder.

    A manifest of somebody else may name any file of this machine: ``../../private.wav``, an absolute path, or a
    symbolic link that comes with the audio.

    Args:
        utterances: Utterances of a manifest.
        root: The folder.
        key: Config key of the folder, for messages.

    Raises:
        ConfigError: The folder does not exist.
        ManifestError, UserErrors: Audio lies elsewhere. Lists all, each with its line.
    """
    if not Path(root).is_dir():
        raise ConfigError(key, f"no such folder: {root}", "give the folder that all audio lies in")
    folder = os.path.realpath(root)
    # Audio lies in few folders, and resolving a path looks at each of its parts.
    real_folder = lru_cache(maxsize=65_536)(os.path.realpath)
    errors = []
    for utterance in utterances:
        container = Location.of(utterance.audio_filepath).container
        above, name = os.path.split(container)
        path = Path(real_folder(above), name)
        if name == ".." or path.is_symlink():
            path = path.resolve()
        if is_remote(container) or not path.is_relative_to(folder):
            what = f"audio {shown(utterance.audio_filepath)} lies outside {key}={root}"
            errors.append(ManifestError(utterance.where, what, f"move it there, or set {key} to a folder with both"))
    raise_all(errors)
