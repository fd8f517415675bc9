"""What a command showed, saved in a file of its results: ``train.log`` of a run.

Progress bars draw over themselves with control codes. `Screen` follows these codes as a terminal does, so the file has
the lines that were left standing, without colors.
"""

import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO, cast

from ssl_asr.config.interruption import current

# Control sequences, links and other commands of a terminal, the ends of lines, and text.
_PARTS = re.compile(r"\x1b\[([0-?]*)[ -/]*([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b.?|[\n\r]|[^\x1b\n\r]+")
# Lines that a progress bar may still draw over.
_OPEN_LINES = 64


class Screen:
    r"""The lines that a terminal shows, and a file that holds them.

    Before `save_to`, lines are kept in memory.

    Example:
        >>> screen = Screen()
        >>> screen.write("\x1b[1mstart\x1b[0m\n 10 %\r100 %\x1b[1A\r\x1b[2Kdone\n")
        >>> screen.lines
        ['done', '100 %']
    """

    def __init__(self) -> None:
        self.lines: list[str] = [""]
        self._row = self._column = 0
        self._file: BinaryIO | None = None
        # Bytes and number of the lines in the file that no longer change, and the lines that follow them there.
        self._settled = 0
        self._written = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> None:
        """Take text as it is written to a terminal."""
        with self._lock:
            for part in _PARTS.finditer(text):
                if part[2] is not None:
                    self._control(part[2], part[1])
                elif part[0] == "\n":
                    self._move_to(self._row + 1)
                    self._column = 0
                elif part[0] == "\r":
                    self._column = 0
                elif not part[0].startswith("\x1b"):
                    self._put(part[0])
            self._save()

    def save_to(self, path: Path) -> None:
        """Write all lines to the end of a file, and from now on each new one."""
        with self._lock:
            if self._file is None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch()
                self._file = path.open("r+b", buffering=0)
                self._settled = self._file.seek(0, 2)
                self._save()

    def close(self) -> None:
        """Write the last line, which may have no end, and close the file."""
        with self._lock:
            if self._file is not None:
                if self._row < len(self.lines) and self.lines[self._row].strip():
                    self.write("\n")
                self._file.close()
                self._file = None

    def _put(self, text: str) -> None:
        line = self.lines[self._row].ljust(self._column)
        self.lines[self._row] = line[: self._column] + text + line[self._column + len(text) :]
        self._column += len(text)

    def _move_to(self, row: int) -> None:
        self._row = max(0, row)
        self.lines += [""] * (self._row + 1 - len(self.lines))

    def _control(self, code: str, argument: str) -> None:
        """Follow a control sequence that moves the cursor up or down, or erases. Colors and others change no text."""
        if code in "AB":
            count = int(argument) if argument.isdigit() else 1
            self._move_to(self._row + (count if code == "B" else -count))
        elif code == "K":
            line = self.lines[self._row]
            self.lines[self._row] = {"2": "", "1": " " * self._column + line[self._column :]}.get(
                argument, line[: self._column]
            )

    def _save(self) -> None:
        """Write the lines above the cursor. The file ends with the last of them."""
        if self._file is None:
            return
        text = "".join(f"{line.rstrip()}\n" for line in self.lines[: self._row])
        if text != self._written:
            self._file.seek(self._settled)
            self._file.write(text.encode(errors="replace"))
            self._file.truncate()
            self._written = text
        over = self._row - _OPEN_LINES
        if over > 0:
            settled = "".join(f"{line.rstrip()}\n" for line in self.lines[:over])
            self._settled += len(settled.encode(errors="replace"))
            self._written = self._written[len(settled) :]
            self.lines, self._row = self.lines[over:], self._row - over


class _Tee:
    """A stream whose text also goes to a screen."""

    def __init__(self, stream: TextIO, screen: Screen) -> None:
        self._stream, self._screen = stream, screen

    def write(self, text: str) -> int:
        self._screen.write(text)
        return self._stream.write(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


_SCREENS: list[Screen] = []


@contextmanager
def recorded(*, on: bool) -> Iterator[None]:
    """Keep what the block shows, on standard output and standard error, until `save_console` names a file for it.

    Output that bypasses Python's streams is not kept. If a signal stops the block, how to go on is part of it.

    Args:
        on: False does nothing.
    """
    if not on:
        yield
        return
    screen, out, err = Screen(), sys.stdout, sys.stderr
    tees = {id(out): cast(TextIO, _Tee(out, screen)), id(err): cast(TextIO, _Tee(err, screen))}
    _SCREENS.append(screen)
    sys.stdout, sys.stderr = tees[id(out)], tees[id(err)]
    # Loggers keep the stream that they were made with.
    moved = [(handler, handler.stream) for handler in _stream_handlers() if id(handler.stream) in tees]
    for handler, stream in moved:
        handler.setStream(tees[id(stream)])
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if current().signal is not None:
            current().say()
        raise
    finally:
        for handler, stream in moved:
            handler.setStream(stream)
        sys.stdout, sys.stderr = out, err
        _SCREENS.remove(screen)
        screen.close()


def _stream_handlers() -> list["logging.StreamHandler[TextIO]"]:
    names = ["", *logging.root.manager.loggerDict]
    handlers = [handler for name in names for handler in logging.getLogger(name).handlers]
    return [handler for handler in dict.fromkeys(handlers) if type(handler) is logging.StreamHandler]


def save_console(path: Path) -> None:
    """Write to a file what the innermost block of `recorded` has shown, and what it will show. Appends to the file."""
    if _SCREENS:
        _SCREENS[-1].save_to(path)
