"""Console output, warnings for users, and silencing of other libraries."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table


def make_console(*, stderr: bool = False) -> Console:
    """A console with the width of the terminal, or 120 columns if there is no terminal."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=120)


# Tables with many columns have no space around their cells on a narrower console.
_WIDE = 100


def fitting_table(console: Console, title: str) -> Table:
    """A table with a title, whose cells stand close to each other if the console is narrow."""
    return Table(title=title, title_justify="left", padding=(0, 1) if console.width >= _WIDE else (0, 0))


# Standard output of a command whose results are read by other programs, see `results_only`.
_results: list[TextIO] = []


@contextmanager
def results_only() -> Iterator[None]:
    """Keep standard output for `results`. What anything else prints, libraries included, goes to standard error."""
    _results.append(sys.stdout)
    sys.stdout = sys.stderr
    try:
        yield
    finally:
        sys.stdout = _results.pop()


def results() -> TextIO:
    """Where results are printed: standard output, also within `results_only`."""
    return _results[-1] if _results else sys.stdout


class Notice(UserWarning):
    """Part of a user's input has no effect, and the rest is used. See `notify`."""


def notify(message: str) -> None:
    """Warn the user. Commands print the message as one line on standard error, once; in Python it is a `Notice`."""
    warnings.warn(message, Notice, stacklevel=2)


def shortened(texts: Sequence[str], shown: int = 20) -> str:
    """A list in a message: the first texts, and the number of all others.

    Example:
        >>> shortened(["a", "b", "c"], shown=2)
        'a, b, … and 1 more'
    """
    more = [f"… and {len(texts) - shown:,} more"] if len(texts) > shown else []
    return ", ".join([*texts[:shown], *more])


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """`warnings.showwarning` with a `Notice`, and what Lightning says, as one line without a place in the source."""
    text = warnings.formatwarning(message, category, filename, lineno, line)
    is_said = issubclass(category, Notice) or "lightning" in Path(filename).parts
    print(f"warning: {' '.join(str(message).split())}\n" if is_said else text, end="", file=file or sys.stderr)


def hush() -> None:
    """Silence messages of Lightning and DataLoaders about intended settings. Errors stay visible.

    A `Notice` is printed as one line.
    """
    warnings.showwarning = _show_warning
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*exists and is not empty.*",
        # A run without a dev split.
        "Total length of `list` across ranks is zero.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*Experiment logs directory.*",
        ".*lr_scheduler.step\\(\\).*before.*optimizer.step\\(\\).*",
        ".*No audio backend.*",
        ".*in eval mode at the start of training.*",
    ):
        warnings.filterwarnings("ignore", message)


def say_to(console: Console | None) -> Callable[[str], None]:
    """A function that prints one message on a console, or nothing if there is no console."""
    return no_message if console is None else console.print


def no_message(_: str) -> None:
    """A message function that prints nothing."""
