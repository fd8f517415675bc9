"""How many recordings went into a command, came out, and were skipped."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich.console import Console
from rich.table import Table

from ssl_asr.console import TitledTable
from ssl_asr.data.manifest import Manifest
from ssl_asr.data.signal import notice_record
from ssl_asr.errors import ConfigError
from ssl_asr.textfiles import to_json, written_whole
from ssl_asr.types import Notice, Skip

if TYPE_CHECKING:
    from ssl_asr.inference.batches import Transcripts

# Skips of one reason that are printed, if a file has all of them.
_SHOWN = 20
# Reasons of recordings that are named twice, and of files that folders hold besides recordings.
_PASSED_OVER = {"duplicate", "hidden", "suffix"}


@dataclass(frozen=True, slots=True)
class Summary:
    """Recordings of a command. ``count == done + len(skips)``.

    Attributes:
        count: Number of recordings that the inputs name.
        done: Number of recordings that came out.
        skips: The other recordings, with reasons.
        notes: What searched folders hold besides recordings.
        key: Key of the inputs, for the error if nothing came out.
        verb: What the command does with recordings, for the same error.
        notices: Findings in the audio of recordings that came out. They are written, and not printed.
    """

    count: int
    done: int
    skips: Sequence[Skip]
    notes: Sequence[str] = ()
    key: str = "input"
    verb: str = "transcribed"
    notices: Sequence[Notice] = ()

    @classmethod
    def of(cls, manifests: Mapping[str, Manifest], transcripts: "Transcripts") -> "Summary":
        """The summary of manifests and their transcripts."""
        done = sum(len(rows) for rows in transcripts.predictions.values())
        skips = [skip for skips in transcripts.skips.values() for skip in skips]
        return cls(sum(len(manifest) for manifest in manifests.values()), done, skips, key="manifest")

    def __post_init__(self) -> None:
        assert self.count == self.done + len(self.skips), f"{self.count} in, {self.done} out, {len(self.skips)} skipped"

    @property
    def reasons(self) -> dict[str, int]:
        """Number of skipped recordings by reason, the most frequent reason first."""
        return dict(Counter(skip.reason for skip in self.skips).most_common())

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.reasons.items())
        skipped = f"{len(self.skips)} skipped" + (f" ({reasons})" if reasons else "")
        return f"recordings: {self.count} in, {self.done} out, {skipped}"

    def record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        skipped = [
            {"id": skip.id, "where": skip.where, "reason": skip.reason, "detail": skip.detail} for skip in self.skips
        ]
        numbers = {"in": self.count, "out": self.done, "skipped": len(self.skips)}
        warnings = [{"id": notice.id} | notice_record(notice) for notice in self.notices]
        return {**numbers, "reasons": self.reasons, "skips": skipped, "warnings": warnings, "notes": list(self.notes)}

    def write(self, path: Path) -> None:
        """Write the summary as one JSON object."""
        with written_whole(path) as file:
            file.write(to_json(self.record(), indent=1) + "\n")

    def show(self, console: Console | None, path: Path | None = None, file: TextIO | None = None) -> None:
        """Print skipped recordings and the numbers, and a table of the reasons on a console.

        Args:
            console: Where the table is printed; None prints no table.
            path: File with the whole summary. If there is one, at most 20 recordings of a reason are printed.
            file: Where everything else is printed. Default: None (standard error).

        Raises:
            ConfigError: No recording came out.
        """
        file = file or sys.stderr
        shown: Counter[str] = Counter()
        for skip in self.skips:
            shown[skip.reason] += 1
            if path is None or shown[skip.reason] <= _SHOWN:
                print(f"skipped {skip.id}: {skip.reason}: {skip.detail}", file=file)
        for reason, count in shown.items():
            if path is not None and count > _SHOWN:
                print(f"skipped {count - _SHOWN} more: {reason}: see {path}", file=file)
        for note in self.notes:
            print(f"note: {note}", file=file)
        if console is not None and self.skips:
            console.print(self._table())
        print(self, file=file)
        if self.done == 0:
            raise ConfigError(self.key, f"nothing could be {self.verb}", "see the lines above")

    def check(self, max_skip_fraction: float) -> None:
        """Check the number of recordings that could not be used. Recordings that are done once anyway do not count.

        Raises:
            ConfigError: More than ``max_skip_fraction`` of the recordings could not be used.
        """
        failed = Counter(skip.reason for skip in self.skips if skip.reason not in _PASSED_OVER)
        if self.count and failed.total() / self.count > max_skip_fraction:
            reasons = ", ".join(f"{reason} {count}" for reason, count in failed.most_common())
            what = f"{failed.total()} of {self.count} recordings could not be {self.verb} ({reasons}). The rest is done"
            remedy = f"correct them, or raise max_skip_fraction (now {max_skip_fraction:g})"
            raise ConfigError(self.key, what, remedy)

    def _table(self) -> Table:
        table = TitledTable("Recordings")
        table.add_column("")
        table.add_column("recordings", justify="right")
        rows = {"in": self.count, "out": self.done} | {f"skipped, {why}": n for why, n in self.reasons.items()}
        for name, count in rows.items():
            table.add_row(name, f"{count:,}")
        return table
