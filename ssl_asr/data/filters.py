"""Filter the utterances of a manifest before a run, with a reason for each dropped utterance."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from ssl_asr.console import TitledTable, tracked
from ssl_asr.data.audio import check_header
from ssl_asr.data.files import MEMBER, OF_SHARD
from ssl_asr.data.manifest import Manifest
from ssl_asr.data.media import Header
from ssl_asr.data.parallel import map_ranges, ranges_of
from ssl_asr.data.targets import Targets, count_targets, ctc_frames_needed
from ssl_asr.errors import AudioError, ManifestError
from ssl_asr.textfiles import to_json, written_whole
from ssl_asr.types import SAMPLE_RATE, Downmix, Samples, Seconds, Skip, Tokenizer, Utterance

# Reasons to drop an utterance that are not errors of its audio file.
BY_LIMIT = {"too_short", "too_long", "empty_text", "too_many_tokens", "ctc_target_too_long"}
# Threads that read audio headers.
_HEADER_THREADS = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the model and of the config on utterances.

    Attributes:
        min_s, max_s: Minimum and maximum duration in seconds. None for no maximum.
        max_s_why: Where ``max_s`` comes from, for messages.
        max_tokens: Maximum number of target tokens, prompt included. None for no limit.
        prompt_tokens: Number of tokens in front of the target.
        ctc_frames: Number of encoder frames for a number of samples, if targets must fit the frames (CTC). None if
            they need not.
        allow_empty_text: Whether utterances with empty text are kept.
    """

    min_s: Seconds = 0.0
    max_s: Seconds | None = None
    max_s_why: str = "data.max_s"
    max_tokens: int | None = None
    prompt_tokens: int = 0
    ctc_frames: Callable[[Samples], int] | None = None
    allow_empty_text: bool = False


@dataclass(slots=True)
class Selection:
    """Result of filtering a manifest.

    Attributes:
        name: Name of the split.
        manifest: All utterances.
        kept: Usable utterances.
        skips: Dropped utterances with reasons.
        changes: Number of kept utterances whose audio is changed when it is read, by change: resampled from another
            sample rate, or mixed from several channels. Empty if headers are not opened.
        targets: What the targets of ``kept`` need. None if it is not trained on.
    """

    name: str
    manifest: Manifest
    kept: Manifest
    skips: list[Skip] = field(default_factory=list)
    changes: Counter[str] = field(default_factory=Counter)
    targets: Targets | None = None


def _length_fault(utterance: Utterance, limits: Limits) -> Skip | None:
    seen = f"{utterance.duration:.2f} s"
    if utterance.duration < limits.min_s:
        return _skip(utterance, "too_short", f"{seen} < {limits.min_s:.3f} s")
    if limits.max_s is not None and utterance.duration > limits.max_s:
        return _skip(utterance, "too_long", f"{seen} > {limits.max_s:g} s ({limits.max_s_why})")
    return None


def _text_fault(utterance: Utterance, limits: Limits, tokenizer: Tokenizer) -> Skip | None:
    if not utterance.text.strip() and not limits.allow_empty_text:
        return _skip(utterance, "empty_text", "the text is empty")
    tokens = tokenizer.encode(utterance)
    total = len(tokens) + limits.prompt_tokens
    if limits.max_tokens is not None and total > limits.max_tokens:
        return _skip(utterance, "too_many_tokens", f"{total} tokens, prompt included > {limits.max_tokens}")
    if limits.ctc_frames is not None:
        frames = limits.ctc_frames(round(utterance.duration * SAMPLE_RATE))
        needed = ctc_frames_needed(tokens)
        if needed > frames:
            detail = f"{len(tokens)} labels need {needed} frames, the audio has {frames}"
            return _skip(utterance, "ctc_target_too_long", detail)
    return None


def fault_of(utterance: Utterance, limits: Limits, tokenizer: Tokenizer | None) -> Skip | None:
    """The reason why an utterance exceeds the limits, or None.

    Args:
        utterance: The utterance.
        limits: Limits on duration, tokens and frames.
        tokenizer: Encodes the target. None checks the duration only.
    """
    fault = _length_fault(utterance, limits)
    if fault is None and tokenizer is not None:
        # Training may draw any of the references.
        faults = (_text_fault(variant, limits, tokenizer) for variant in utterance.variants())
        fault = next((fault for fault in faults if fault is not None), None)
    return fault


def exceeding(durations_N: NDArray[np.float64], targets: Targets | None, limits: Limits) -> NDArray[np.bool_]:
    """Whether `fault_of` finds a fault in each utterance, bool.

    Args:
        durations_N: float64, seconds.
        targets: What the targets need. None checks the durations only.
        limits: Limits on duration, tokens and frames.
    """
    found_N: NDArray[np.bool_] = durations_N < limits.min_s
    if limits.max_s is not None:
        found_N |= durations_N > limits.max_s
    if targets is None:
        return found_N
    if not limits.allow_empty_text:
        found_N |= targets.blank_N
    if limits.max_tokens is not None:
        found_N |= targets.tokens_N.astype(np.int64) + limits.prompt_tokens > limits.max_tokens
    if limits.ctc_frames is not None:
        samples_N, same_N = np.unique(np.round(durations_N * SAMPLE_RATE).astype(np.int64), return_inverse=True)
        frames_N = np.array([limits.ctc_frames(samples) for samples in samples_N.tolist()], dtype=np.int64)
        found_N |= targets.frames_N > frames_N[same_N]
    return found_N


def _opened(utterance: Utterance, downmix: Downmix, any_rate: bool) -> Header | Skip:
    try:
        return check_header(utterance, downmix=downmix, any_rate=any_rate)
    except AudioError as error:
        return _skip(utterance, error.reason, str(error))


def _changes(utterance: Utterance, header: Header) -> list[str]:
    """How the audio is changed when it is read."""
    found = [] if header.rate == SAMPLE_RATE else [f"resampled from {header.rate:,} Hz"]
    mixed = header.channels > 1 and utterance.channel is None
    return [*found, f"{header.channels} channels become one"] if mixed else found


def _skip(utterance: Utterance, reason: str, detail: str) -> Skip:
    return Skip(utterance.id, utterance.where, reason, detail, utterance.duration)


def select(
    name: str,
    manifest: Manifest,
    limits: Limits,
    *,
    tokenizer: Tokenizer | None,
    check_audio: bool,
    downmix: Downmix = "mean",
    any_rate: bool = True,
    progress: bool = True,
    may_be_empty: bool = False,
    targets: Targets | None = None,
) -> Selection:
    """Filter the utterances of a manifest.

    Args:
        name: Name of the split.
        manifest: All utterances.
        limits: Limits on duration, tokens and frames.
        tokenizer: Encodes the targets. None for evaluation, where any reference is allowed.
        check_audio: Whether to open each file and compare its header with the manifest.
        downmix, any_rate: Which channels and sample rates are refused, see `read_waveform`.
        progress: Whether to show a progress bar.
        may_be_empty: Whether all utterances may be dropped.
        targets: What the targets need. Default: None (counted here, if there is a tokenizer).

    Raises:
        ManifestError: No utterance is left, and ``may_be_empty`` is false.
    """
    opened = partial(_opened, downmix=downmix, any_rate=any_rate)
    if targets is None and tokenizer is not None:
        targets = count_targets(manifest, tokenizer, progress=progress)
    exceeds_N = exceeding(manifest.durations_N, targets, limits)

    def check(start: int, end: int) -> tuple[list[tuple[int, Skip]], Counter[str]]:
        indices = np.arange(start, end) if check_audio else start + np.flatnonzero(exceeds_N[start:end])
        rows = [manifest[index] for index in indices.tolist()] if len(indices) < end - start else manifest[start:end]
        dropped: list[tuple[int, Skip]] = []
        changes: Counter[str] = Counter()
        with ThreadPoolExecutor(max_workers=_HEADER_THREADS) as pool:
            headers = pool.map(opened, rows) if check_audio else (None for _ in rows)
            for index, utterance, header in zip(indices.tolist(), rows, headers, strict=True):
                exceeds = not isinstance(header, Skip) and exceeds_N[index]
                fault = fault_of(utterance, limits, tokenizer) if exceeds else header
                if isinstance(fault, Skip):
                    dropped.append((index, fault))
                elif isinstance(header, Header):
                    changes.update(_changes(utterance, header))
        return dropped, changes

    ranges = ranges_of(len(manifest))
    bar = tracked(map_ranges(check, ranges), f"check {name}", total=len(ranges), shown=progress)
    found, counted = zip(*bar, strict=True) if ranges else ((), ())
    dropped = dict(chain.from_iterable(found))
    kept_N = np.delete(np.arange(len(manifest)), list(dropped))
    if not len(kept_N) and not may_be_empty:
        raise _nothing_usable(manifest, list(dropped.values()))
    kept_targets = None if targets is None else targets.select(kept_N)
    changes = sum(counted, Counter[str]())
    return Selection(name, manifest, manifest.select(kept_N), [*dropped.values()], changes, kept_targets)


def _nothing_usable(manifest: Manifest, skips: Sequence[Skip]) -> ManifestError:
    counts = ", ".join(f"{reason} {n}" for reason, n in Counter(s.reason for s in skips).most_common())
    what = f"0 of {len(manifest)} utterances are usable: {counts}; the first: {skips[0].detail}"
    return ManifestError(str(manifest.path), what, "correct the manifest, or the limits under data")


def skip_rows(split: str, skips: Iterable[Skip]) -> list[dict[str, Any]]:
    """Rows of ``skipped.jsonl``."""
    return [{"split": split, **asdict(skip)} for skip in skips]


def write_skips(path: Path, skips: Mapping[str, Sequence[Skip]]) -> None:
    """Write ``skipped.jsonl``: one line for each skip, with the name of its split."""
    with written_whole(path) as file:
        for split, some in skips.items():
            file.writelines(to_json(row) + "\n" for row in skip_rows(split, some))


def skips_error(
    manifest: Manifest,
    skips: Sequence[Skip],
    max_skip_fraction: float,
    *,
    prefix: str = "data.",
    count: int | None = None,
) -> ManifestError:
    """The error for a manifest that loses too many utterances.

    Args:
        manifest: The whole manifest.
        skips: Dropped utterances.
        max_skip_fraction: Largest fraction that may be dropped.
        prefix: Start of the key ``max_skip_fraction`` in the command's config.
        count: Number of dropped utterances. Default: None (the length of ``skips``).
    """
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in Counter(skip.reason for skip in skips).most_common())
    first = "; ".join(islice(_causes(skips), 5))
    number = len(skips) if count is None else count
    what = f"{number:,} of {len(manifest):,} utterances dropped ({reasons}): {first}"
    remedy = f"correct them, or raise {prefix}max_skip_fraction (now {max_skip_fraction:g})"
    return ManifestError(str(manifest.path), what, remedy)


def _causes(skips: Sequence[Skip]) -> Iterator[str]:
    """What is wrong, once for all utterances of a shard that cannot be read."""
    groups: dict[tuple[str, str], list[Skip]] = defaultdict(list)
    for number, skip in enumerate(skips):
        # `AudioError` names the utterance, then its path, which begins with that of the shard.
        path = skip.detail.removeprefix(f"{skip.id} ({skip.where}): ")
        shard, inside, _ = path.partition(MEMBER)
        groups[skip.reason, shard if inside and skip.reason in OF_SHARD else str(number)].append(skip)
    for [first, *others] in groups.values():
        more = f" (and {len(others):,} more utterances of this shard)" if others else ""
        yield f"{first.id}: {first.reason}: {first.detail}{more}"


def check_skips(selection: Selection, max_skip_fraction: float, *, prefix: str = "data.") -> None:
    """Check the number of dropped utterances of a split.

    Raises:
        ManifestError: More than ``max_skip_fraction`` of the utterances were dropped.
    """
    if len(selection.skips) / len(selection.manifest) > max_skip_fraction:
        raise skips_error(selection.manifest, selection.skips, max_skip_fraction, prefix=prefix)


def print_selections(selections: Sequence[Selection], console: Console) -> None:
    """Print a table of kept and dropped utterances, with a row for each reason and each change of their audio."""
    table = TitledTable("Data")
    for column in ("split", "utterances", "hours", "status"):
        table.add_column(column, justify="right" if column in ("utterances", "hours") else "left")
    for selection in selections:
        hours = selection.kept.total_s / 3600
        table.add_row(
            selection.name, f"{len(selection.kept):,}", f"{hours:.2f}", f"kept of {len(selection.manifest):,}"
        )
        for reason, skips in _by_reason(selection.skips):
            names = ", ".join(skip.id for skip in skips[:3]) + (" …" if len(skips) > 3 else "")
            dropped = sum(skip.duration for skip in skips) / 3600
            table.add_row("", f"{len(skips):,}", f"{dropped:.2f}", f"dropped, {reason}: {names}")
        for change, count in selection.changes.most_common():
            table.add_row("", f"{count:,}", "", change)
    console.print(table)


def _by_reason(skips: Sequence[Skip]) -> list[tuple[str, list[Skip]]]:
    """Skips grouped by reason, the most frequent reason first."""
    groups: dict[str, list[Skip]] = defaultdict(list)
    for skip in skips:
        groups[skip.reason].append(skip)
    return sorted(groups.items(), key=lambda item: -len(item[1]))
