"""Names of recordings in written formats."""

import re
from collections.abc import Sequence
from pathlib import Path

from ssl_asr.metrics.report import Prediction


def recording_names(rows: Sequence[Prediction]) -> list[str]:
    """A name for each transcript: unique for each file, without spaces, and equal for transcripts of one file."""
    paths = [row.audio_filepath for row in rows]
    names: dict[str, str] = {}
    for path in dict.fromkeys(paths):
        stem = re.sub(r"\s+", "_", Path(path).stem) or "recording"
        name, number = stem, 2
        while name in names.values():
            name, number = f"{stem}_{number}", number + 1
        names[path] = name
    return [names[path] for path in paths]
