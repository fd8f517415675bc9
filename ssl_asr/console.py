"""Where our tables go, and how other libraries are kept from talking over them."""

import logging
import warnings
from collections.abc import Callable

from rich.console import Console


def make_console(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, and wide enough for our tables where there is none."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=120)


def hush() -> None:
    """Leave errors, drop the chatter of Lightning and of loaders about choices that are ours."""
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
