"""Which utterances a run can use, found out before it starts, with a reason for every other."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ssl_asr.data.audio import check_header
from ssl_asr.data.manifest import Manifest
from ssl_asr.errors import AudioError, ManifestError
from ssl_asr.types import SAMPLE_RATE, Samples, Seconds, Skip, Tokenizer, Utterance


@dataclass(frozen=True, slots=True)
class Limits:
    """What a model can take, and what the user asked for.

    ``ctc_frames`` maps samples to encoder frames where a CTC target must fit into them; None otherwise.
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
    """A manifest's usable part, and the rest with reasons."""

    name: str
    manifest: Manifest
    kept: Manifest
    skips: list[Skip] = field(default_factory=list)


def ctc_frames_needed(tokens: Sequence[int]) -> int:
    """Frames a CTC path needs at least: one a label, and a blank between equal neighbours.

    Example:
        >>> ctc_frames_needed([5, 5, 6])
        4
    """
    return len(tokens) + sum(a == b for a, b in pairwise(tokens))


def _length_fault(utterance: Utterance, limits: Limits) -> Skip | None:
    seen = f"{utterance.duration:.2f} s"
    if utterance.duration < limits.min_s:
        return _skip(utterance, "too_short", f"{seen} < {limits.min_s:.3f} s")
    if limits.max_s is not None and utterance.duration > limits.max_s:
        return _skip(utterance, "too_long", f"{seen} > {limits.max_s:g} s ({limits.max_s_why})")
    return None


def _text_fault(utterance: Utterance, limits: Limits, tokenizer: Tokenizer) -> Skip | None:
    if not utterance.text.strip() and not limits.allow_empty_text:
        return _skip(utterance, "empty_text", "nothing to learn from")
    tokens = tokenizer.encode(utterance)
    total = len(tokens) + limits.prompt_tokens
    if limits.max_tokens is not None and total > limits.max_tokens:
        return _skip(utterance, "too_many_tokens", f"{total} tokens with the prompt > {limits.max_tokens}")
    if limits.ctc_frames is not None:
        frames = limits.ctc_frames(round(utterance.duration * SAMPLE_RATE))
        needed = ctc_frames_needed(tokens)
        if needed > frames:
            detail = f"{len(tokens)} labels need {needed} frames, the audio has {frames}"
            return _skip(utterance, "ctc_target_too_long", detail)
    return None


def fault_of(utterance: Utterance, limits: Limits, tokenizer: Tokenizer | None) -> Skip | None:
    """Why an utterance is outside the limits of length or, where a tokenizer spells its target, of tokens."""
    fault = _length_fault(utterance, limits)
    if fault is None and tokenizer is not None:
        fault = _text_fault(utterance, limits, tokenizer)
    return fault


def _audio_fault(utterance: Utterance) -> Skip | None:
    try:
        check_header(utterance)
    except AudioError as error:
        return _skip(utterance, error.reason, str(error))
    return None


def _skip(utterance: Utterance, reason: str, detail: str) -> Skip:
    return Skip(utterance.id, utterance.where, reason, detail, utterance.duration)


def select(
    name: str,
    manifest: Manifest,
    limits: Limits,
    *,
    tokenizer: Tokenizer | None,
    check_audio: bool,
    progress: bool = True,
) -> Selection:
    """Sort a manifest's utterances into usable and not.

    Args:
        name: the split, for the table.
        manifest: what to sort.
        limits: of length, tokens and frames.
        tokenizer: spells the targets to be measured; None where text plays no part (evaluation, where the
            reference may be anything).
        check_audio: whether to open every file and compare its header with the manifest.
        progress: whether to show a bar.

    Raises:
        ManifestError: nothing is left, with the reasons.
    """
    kept: list[int] = []
    skips: list[Skip] = []
    with ThreadPoolExecutor(max_workers=8) as pool:
        faults = pool.map(_audio_fault, manifest) if check_audio else (None for _ in manifest)
        rows = zip(manifest, faults, strict=True)
        bar = track(rows, f"check {name}", total=len(manifest), transient=True, disable=not progress)
        for index, (utterance, audio_fault) in enumerate(bar):
            fault = audio_fault or fault_of(utterance, limits, tokenizer)
            if fault is None:
                kept.append(index)
            else:
                skips.append(fault)
    if not kept:
        counts = ", ".join(f"{reason} {n}" for reason, n in Counter(s.reason for s in skips).most_common())
        what = f"0 of {len(manifest)} utterances can be used: {counts}; first: {skips[0].detail}"
        raise ManifestError(str(manifest.path), what, "mend the manifest or the limits under data")
    return Selection(name, manifest, manifest.select(np.asarray(kept)), skips)


def check_skips(selection: Selection, max_skip_fraction: float) -> None:
    """Refuse a split that lost too much.

    Raises:
        ManifestError: more than ``max_skip_fraction`` of its utterances were dropped.
    """
    fraction = len(selection.skips) / len(selection.manifest)
    if fraction > max_skip_fraction:
        first = "; ".join(f"{skip.id}: {skip.reason}: {skip.detail}" for skip in selection.skips[:5])
        what = f"{len(selection.skips)} of {len(selection.manifest)} utterances dropped: {first}"
        remedy = f"mend them, or raise data.max_skip_fraction (now {max_skip_fraction:g})"
        raise ManifestError(str(selection.manifest.path), what, remedy)


def print_selections(selections: Sequence[Selection], console: Console) -> None:
    """Print what was kept and what was dropped, and why."""
    table = Table(title="Data", title_justify="left")
    for column, right in (("split", False), ("utterances", True), ("hours", True), ("which", False)):
        table.add_column(column, justify="right" if right else "left")
    for selection in selections:
        hours = selection.kept.total_s / 3600
        table.add_row(
            selection.name, f"{len(selection.kept):,}", f"{hours:.2f}", f"kept of {len(selection.manifest):,}"
        )
        by_reason: dict[str, list[Skip]] = defaultdict(list)
        for skip in selection.skips:
            by_reason[skip.reason].append(skip)
        for reason, skips in sorted(by_reason.items(), key=lambda item: -len(item[1])):
            names = ", ".join(skip.id for skip in skips[:3]) + (" …" if len(skips) > 3 else "")
            dropped = sum(skip.duration for skip in skips) / 3600
            table.add_row("", f"{len(skips):,}", f"{dropped:.2f}", f"dropped, {reason}: {names}")
    console.print(table)
