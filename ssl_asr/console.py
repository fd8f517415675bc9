"""Console output, and silencing of other libraries."""

import logging
import warnings
from collections.abc import Callable

from rich.console import Console


def make_console(*, stderr: bool = False) -> Console:
    """A console with the width of the terminal, or 120 columns if there is no terminal."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=120)


def hush() -> None:
    """Silence messages of Lightning and DataLoaders about intended settings. Errors stay visible."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*exists and is not empty.*",
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
