"""Plain transcripts beside the audio: ``.txt`` and ``.lab``."""

import re
from pathlib import Path

from ssl_asr.errors import ManifestError
from ssl_asr.textfiles import read_lines

# A line of HTK's label files: start and end in units of 100 ns, and a label.
_HTK = re.compile(r"\d+\s+\d+\s+\S")


def read_transcript(path: Path) -> str:
    """The text of a file, on one line.

    Raises:
        ManifestError: The file is not text, or has the times of labels.
    """
    lines = [line.strip() for _, line in read_lines(path, error=ManifestError, remedy="save the file as UTF-8")]
    lines = [line for line in lines if line]
    if lines and path.suffix.lower() == ".lab" and all(map(_HTK.match, lines)):
        what = "has times of labels (HTK), expected a transcript"
        raise ManifestError(str(path), what, "write the words without times")
    return " ".join(lines)
