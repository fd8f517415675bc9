"""Console output, warnings for users, and silencing of other libraries."""

import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO, TypeVar

from rich import get_console
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import track
from rich.table import Table
from rich.text import Text

T = TypeVar("T")


def make_console(*, stderr: bool = False) -> Console:
    """A console with the width of the terminal, or 120 columns if there is no terminal."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=120)


class TitledTable(Table):
    """A table under a title. What does not fit the console is wrapped; no text is cut.

    The title may be wider than the table. If the table is wider than the console, its cells stand close to each other.

    Args:
        heading: The title, without markup.
        show_header: Whether the columns have names.
    """

    def __init__(self, heading: str, *, show_header: bool = True) -> None:
        super().__init__(show_header=show_header)
        self._heading = heading

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The lines of the title and of the table."""
        yield Text(self._heading, style="table.title", overflow="fold")
        for column in self.columns:
            column.overflow = "fold"
        if self.__rich_measure__(console, options).maximum > options.max_width:
            self.padding = (0, 0)
        yield from super().__rich_console__(console, options)


def shows_bars(console: Console | None = None) -> bool:
    """Whether a console, None for standard output, can show progress bars: it is a terminal or a notebook.

    On other consoles rich prints an empty line for each bar.
    """
    console = console if console is not None else get_console()
    return console.is_interactive or console.is_jupyter


def tracked(
    items: Iterable[T], title: str, *, total: float | None = None, console: Console | None = None, shown: bool = True
) -> Iterable[T]:
    """The items, with a progress bar that is removed at the end, if the console can show one.

    Args:
        items: Any items.
        title: Text before the bar.
        total: Number of items. Default: None (their length, if they have one).
        console: Where the bar is shown. Default: None (standard output).
        shown: Whether a bar is wanted.
    """
    return track(items, title, total, console=console, transient=True, disable=not (shown and shows_bars(console)))


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


def verified(agrees: Callable[[], bool], *, what: str, instead: str) -> bool:
    """Whether a fast path runs on this machine and agrees with the slow one. If not, warns the user.

    Args:
        agrees: Runs both and compares them. Errors count as a difference.
        what: Start of the warning: what does not work.
        instead: End of the warning: what is done instead, and what to check.
    """
    try:
        problem = None if agrees() else "its results differ from those of torch"
    except Exception as error:
        problem = f"{type(error).__name__}: {str(error).strip()[:300]}"
    if problem is not None:
        notify(f"{what} ({problem}). {instead}")
    return problem is None


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
        # The default number of workers on a machine with one core.
        "This DataLoader will create .* worker processes in total",
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


@contextmanager
def silent() -> Iterator[None]:
    """Keep transformers from printing warnings and progress bars while it loads or saves a model."""
    from transformers.utils import logging

    verbosity, shows = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if shows:
            logging.enable_progress_bar()


def say_to(console: Console | None) -> Callable[[str], None]:
    """A function that prints one message on a console, or nothing if there is no console."""
    return no_message if console is None else console.print


def no_message(_: str) -> None:
    """A message function that prints nothing."""
