"""Random splits of a corpus in which no speaker, recording or utterance is in two splits."""

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ssl_asr.data.formats.rows import NO_SPLIT, Row, full_path
from ssl_asr.errors import ConfigError
from ssl_asr.types import Seconds


def assign_splits(rows: Sequence[Row], fractions: Mapping[str, float], *, by: str, seed: int) -> list[Row]:
    """Rows with a split each, in the order of the splits, with hours as near to the fractions as the groups allow.

    Groups are shuffled, and each goes to the split that lacks most of its hours. Each split gets a group.

    Args:
        rows: Rows with durations, of at most one split.
        fractions: Fraction of the hours by split. Their sum is 1.
        by: ``speaker``, ``recording`` or ``utterance``: what is in one split only.
        seed: Seed of the order.

    Raises:
        ConfigError: The rows have several splits already, a row has no speaker, or there are fewer groups than splits.
    """
    given = sorted({row.split for row in rows} - {NO_SPLIT})
    if len({row.split for row in rows}) > 1:
        what = f"the source has splits of its own: {', '.join(given)}"
        raise ConfigError("splits", what, "leave out splits, or give one part of the source as input")
    groups: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        groups[_group(row, by)].append(i)
    if len(groups) < len(fractions):
        what = f"there are {len(groups)} {by}s for {len(fractions)} splits, and none may be in two splits"
        coarser = {"speaker": "recording or split_by=utterance", "recording": "utterance"}
        remedy = f"use split_by={coarser[by]}" if by in coarser else "ask for fewer splits"
        raise ConfigError("splits", what, remedy)
    hours = {name: sum(rows[i].duration or 0.0 for i in members) for name, members in groups.items()}
    order = sorted(groups)
    random.Random(seed).shuffle(order)
    chosen = _fill(order, hours, fractions)
    split_of = {i: chosen[name] for name, members in groups.items() for i in members}
    made = [replace(row, split=split_of[i]) for i, row in enumerate(rows)]
    return [row for split in fractions for row in made if row.split == split]


def _group(row: Row, by: str) -> str:
    if by == "utterance":
        return row.id
    if by == "recording":
        return full_path(row.audio)
    if row.speaker is None:
        what = f"{row.id} ({row.where or row.audio}) has no speaker"
        raise ConfigError("split_by", what, "name the column with columns.speaker=…, or use split_by=recording")
    return row.speaker


def _fill(order: Sequence[str], hours: Mapping[str, Seconds], fractions: Mapping[str, float]) -> dict[str, str]:
    """The split of each group."""
    total = sum(hours.values())
    lacking = {split: fraction * total for split, fraction in fractions.items()}
    empty = set(fractions)
    chosen = {}
    for place, name in enumerate(order):
        # The last groups are for splits without a group.
        allowed = empty if len(order) - place <= len(empty) else set(fractions)
        split = max((each for each in fractions if each in allowed), key=lambda each: lacking[each])
        chosen[name] = split
        lacking[split] -= hours[name]
        empty.discard(split)
    return chosen
