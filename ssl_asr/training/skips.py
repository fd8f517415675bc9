"""Utterances that turn out unreadable after the start of a run: counted, written, shown, and limited.

Filtering opens the header of each file. What only decoding finds, such as a truncated FLAC file, comes later, in a
process that loads data. One pass is an epoch of training, or a validation. In each pass:

    every batch    skips of this rank are kept
    every update   their number, summed over ranks, is compared with the limit, and all ranks stop together
    end of pass    skips of all ranks are gathered, written to ``skipped.jsonl``, and printed as one line
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from ssl_asr.console import notify
from ssl_asr.data.filters import Selection, skip_rows, skips_error
from ssl_asr.errors import TrainingError
from ssl_asr.textfiles import to_json, written_whole
from ssl_asr.types import Skip

T = TypeVar("T")


def over_ranks(own: Sequence[T]) -> list[T]:
    """The items of all ranks, in order of the ranks. Every rank must call it."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(own)
    shares: list[list[T]] = [[] for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather_object(shares, list(own))
    return [item for share in shares for item in share]


@dataclass(slots=True)
class _Pass:
    """The current pass over a split.

    Attributes:
        skips: Skips of this rank.
        uncounted: Number of them that are not summed over ranks yet.
        count: Number of skips of all ranks.
    """

    skips: list[Skip] = field(default_factory=list)
    uncounted: int = 0
    count: int = 0


def _late_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of late skips in a file. Lines that a power cut has damaged are left out and counted."""
    lines = [line for line in path.read_bytes().splitlines() if line.strip()]
    rows = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    kept = [row for row in rows if isinstance(row, dict)]
    if len(kept) < len(lines):
        notify(f"{path}: {len(lines) - len(kept)} of {len(lines)} lines are damaged, and are left out")
    return [row for row in kept if "epoch" in row]


class LateSkips:
    """Skips of a run after its start.

    Args:
        selections: Splits after filtering. Utterances that filtering dropped count towards the limit.
        max_fraction: Largest fraction of a split that may be dropped.

    Attributes:
        found: All late skips by split, each once. Complete on all ranks at the end of a pass.
    """

    def __init__(self, selections: Mapping[str, Selection] | None = None, *, max_fraction: float = 1.0) -> None:
        self._selections = dict(selections or {})
        self._max_fraction = max_fraction
        self._passes: dict[str, _Pass] = {}
        self._seen: set[tuple[str, str, str]] = set()
        self._path: Path | None = None
        self._rows: list[dict[str, Any]] = []
        self.found: dict[str, list[Skip]] = {}

    def open(self, path: Path, *, resumed: bool) -> None:
        """Write the skips of filtering to a file, to which later ones are added.

        Args:
            path: A JSON Lines file.
            resumed: Whether the file holds late skips of the part of the run before it was interrupted, to keep.
        """
        rows = [row for name, one in self._selections.items() for row in skip_rows(name, one.skips)]
        if resumed and path.is_file():
            rows += _late_rows(path)
        self._path, self._rows = path, rows
        self._write()

    def begin(self, split: str) -> None:
        """Start a pass over a split."""
        self._passes[split] = _Pass()

    def add(self, split: str, skips: Sequence[Skip]) -> None:
        """Add skips of this rank."""
        one = self._passes.setdefault(split, _Pass())
        one.skips += skips
        one.uncounted += len(skips)

    def uncounted(self, split: str) -> int:
        """Number of skips of this rank since the last call, to be summed over ranks for `count`."""
        one = self._passes.setdefault(split, _Pass())
        number, one.uncounted = one.uncounted, 0
        return number

    def count(self, split: str, number: int, epoch: int) -> None:
        """Count skips of all ranks. Every rank must call it with the same number.

        Args:
            split: Name of the split.
            number: Sum over ranks of `uncounted`.
            epoch: Number of the epoch.

        Raises:
            TrainingError: More than the allowed fraction of the split is dropped, or all of it.
        """
        one = self._passes.setdefault(split, _Pass())
        one.count += number
        selection = self._selections.get(split)
        if number == 0 or selection is None:
            return
        dropped, total = one.count + len(selection.skips), len(selection.manifest)
        if dropped >= total or dropped / total > self._max_fraction:
            self.finish(split, epoch)
            skips = [*self.found[split], *selection.skips]
            error = skips_error(selection.manifest, skips, self._max_fraction, count=dropped)
            raise TrainingError(error.where, error.what, f"{error.remedy}. The last checkpoint is kept")

    def finish(self, split: str, epoch: int) -> None:
        """Gather, write and print the skips of a pass. Every rank must call it."""
        skips = over_ranks(self._passes.pop(split, _Pass()).skips)
        if not skips:
            return
        self.keep(split, skips, epoch)
        _print_late(split, skips, len(self._selections[split].manifest) if split in self._selections else 0, epoch)

    def keep(self, split: str, skips: Sequence[Skip], epoch: int) -> None:
        """Keep skips of all ranks, and write those that are new."""
        known = self.found.setdefault(split, [])
        new = [skip for skip in skips if (split, skip.id, skip.reason) not in self._seen]
        self._seen |= {(split, skip.id, skip.reason) for skip in new}
        known += new
        if new and self._path is not None:
            self._rows += [row | {"epoch": epoch} for row in skip_rows(split, new)]
            self._write()

    def _write(self) -> None:
        assert self._path is not None
        with written_whole(self._path) as file:
            file.writelines(to_json(row) + "\n" for row in self._rows)

    def print_totals(self) -> None:
        """Print on standard error how many utterances could not be read after the start of the run."""
        for split, skips in ((split, some) for split, some in self.found.items() if some):
            where = "" if self._path is None else f". See {self._path}"
            print(f"skipped in {split} during the run: {len(skips):,} ({_reasons(skips)}){where}", file=sys.stderr)


def _print_late(split: str, skips: Sequence[Skip], total: int, epoch: int) -> None:
    """Print the skips of a pass as one line on standard error, on the first rank."""
    if torch.distributed.is_available() and torch.distributed.is_initialized() and torch.distributed.get_rank() > 0:
        return
    names = ", ".join(skip.id for skip in skips[:3]) + (" …" if len(skips) > 3 else "")
    of = f" of {total:,}" if total else ""
    what = f"{len(skips):,}{of} utterances could not be read: {_reasons(skips)}: {names}"
    print(f"warning: epoch {epoch}, {split}: {what}", file=sys.stderr)


def _reasons(skips: Sequence[Skip]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in Counter(skip.reason for skip in skips).most_common())
