"""What is counted and logged of a request."""

import time
from collections.abc import Callable, Sequence

from ssl_asr.data.signal import notice_lines
from ssl_asr.serve.figures import Figures
from ssl_asr.types import Notice, Seconds

Log = Callable[[str], None]
"""Called with one line for each request."""


class Entry:
    """The line of a request, and its place in the figures.

    Args:
        figures: Where it is counted.
        log: Where its line is written.
        address: What it is counted by.

    Attributes:
        model: Name of the model. Empty if it is not known yet.
        audio_s: Length of the recording. None if it is not known yet.
    """

    def __init__(self, figures: Figures, log: Log, address: str) -> None:
        self._figures, self._log = figures, log
        self._address, self._since = address, time.monotonic()
        self.model = ""
        self.audio_s: Seconds | None = None

    def warn(self, found: Sequence[Notice]) -> None:
        """Log what was found in the samples."""
        for line in notice_lines(found):
            self._log(f"warning: {line}")

    def end(self, status: int) -> None:
        """Count and log the answer."""
        seconds = time.monotonic() - self._since
        self._figures.answered(self._address, int(status), seconds)
        audio = "" if self.audio_s is None else f" {self.audio_s:.1f} s of audio,"
        model = f" {self.model}," if self.model else ""
        self._log(f"{int(status)} {self._address}{model}{audio} {seconds:.2f} s")
