"""What the splits of a corpus share: audio, texts and speakers.

    audio      the same file with overlapping spans; a file of the same content under another name; with decoded
               samples, also the same samples in another format
    text       the same text after normalization. Short texts, such as digits, are shared by nature
    speaker    the same value of ``speaker``

Only lines of evaluation splits are kept in memory. Training splits are read once.
"""

import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ssl_asr.console import TitledTable
from ssl_asr.data.doctor.findings import Finding, level_of
from ssl_asr.data.files import FileKey
from ssl_asr.data.identity import content_digest, file_key
from ssl_asr.data.manifest import Manifest
from ssl_asr.data.remote import MediaError
from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import ManifestError, raise_all
from ssl_asr.types import Normalizer, Seconds, Utterance

_SPEAKER_KEYS = ("speaker", "speaker_id", "spk", "spk_id", "client_id")
# A text is long from these numbers of words or characters on. Two speakers rarely say the same long text by chance.
_LONG_WORDS, _LONG_CHARACTERS = 6, 30
# Share of a split with long texts of training from which on its score says nothing about new texts.
_MOST_TEXTS = 0.9
# Share of the training lines up to which speakers that evaluation has too are a mistake.
_MOST_LEAKED_SPEAKERS = 0.1
# Spans that touch by rounding do not overlap.
_OVERLAP_S: Seconds = 0.05


def speaker_of(utterance: Utterance) -> str | None:
    """The speaker that a manifest names, or None."""
    return next((str(utterance.tags[key]) for key in _SPEAKER_KEYS if utterance.tags.get(key) not in (None, "")), None)


def is_long(text: str) -> bool:
    """Whether a normalized text is long enough to be shared by mistake only."""
    return len(text.split()) >= _LONG_WORDS or len(text) >= _LONG_CHARACTERS


@dataclass(slots=True)
class _Index:
    """Lines of evaluation splits by what training splits may share with them."""

    files: dict[tuple[str, int | None], list[tuple[str, Utterance]]] = field(default_factory=lambda: defaultdict(list))
    sizes: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    texts: dict[int, list[tuple[str, Utterance]]] = field(default_factory=lambda: defaultdict(list))
    speakers: dict[str, list[tuple[str, Utterance]]] = field(default_factory=lambda: defaultdict(list))


def _size(path: str) -> int | None:
    try:
        return FileKey.of(path).size
    except (MediaError, OSError):
        return None


def _index(
    manifests: Mapping[str, Manifest], training: Collection[str], normalize: Normalizer, *, contents: bool
) -> _Index:
    index = _Index()
    for split, manifest in manifests.items():
        if split in training:
            continue
        for utterance in manifest:
            path = file_key(utterance.audio_filepath)
            if contents and (path, None) not in index.files and (size := _size(path)):
                index.sizes[size].add(path)
            index.files[path, None].append((split, utterance))
            for text in dict.fromkeys(normalize(one, utterance.lang).strip() for one in utterance.texts):
                index.texts[hash(text)].append((split, utterance))
            speaker = speaker_of(utterance)
            if speaker is not None:
                index.speakers[speaker].append((split, utterance))
    return index


def leakage(
    manifests: Mapping[str, Manifest], training: Collection[str], normalize: Normalizer, *, contents: bool = True
) -> Iterator[Finding]:
    """Findings in lines of evaluation splits that share audio, texts or speakers with a training split.

    A training line whose audio is in evaluation has a finding too.

    Args:
        manifests: Manifests by name.
        training: Names of training splits.
        normalize: Normalizer of the texts that are compared.
        contents: Whether to look for files of the same content under other names. Only files of equal size are read.
    """
    index = _index(manifests, training, normalize, contents=contents)
    seen: set[tuple[str, str, str]] = set()
    alike: dict[str, str | None] = {}
    for split, manifest in manifests.items():
        if split not in training or not index.files:
            continue
        for utterance in manifest:
            for found in _shared(index, split, utterance, normalize, alike, contents=contents):
                key = (found.split, found.where or found.id, found.finding)
                if key not in seen:
                    seen.add(key)
                    yield found


def _shared(
    index: _Index,
    training: str,
    utterance: Utterance,
    normalize: Normalizer,
    alike: dict[str, str | None],
    *,
    contents: bool,
) -> Iterator[Finding]:
    """What a line of a training split shares with lines of evaluation."""
    path = file_key(utterance.audio_filepath)
    if path not in alike and contents:
        alike[path] = _copy_of(index, path)
    same_file = index.files.get((path, None), [])
    for split, other in [*same_file, *index.files.get((alike.get(path) or "", None), [])]:
        if _overlap(utterance, other):
            yield from leaked_audio(training, utterance, split, other)
    for text in dict.fromkeys(normalize(one, utterance.lang).strip() for one in utterance.texts):
        # One finding is enough: a short text may be in thousands of lines of both.
        for split, other in index.texts.pop(hash(text), []) if text else []:
            if other.where == utterance.where:
                index.texts[hash(text)].append((split, other))
                continue
            kind = "leaked_text" if is_long(text) else "shared_text"
            yield Finding.of(split, other, kind, f"the text is also in training, at {_place(utterance)}: {text[:80]!r}")
    speaker = speaker_of(utterance)
    for split, other in index.speakers.pop(speaker, []) if speaker is not None else []:
        yield Finding.of(split, other, "shared_speaker", f"speaker {speaker} is also in training")


def leaked_audio(training: str, utterance: Utterance, split: str, other: Utterance) -> Iterator[Finding]:
    """The two findings for a training line and an evaluation line of the same audio."""
    yield Finding.of(split, other, "leaked_audio", f"the audio is also in training, at {_place(utterance)}")
    yield Finding.of(training, utterance, "in_evaluation", f"the audio is also in {split}, at {_place(other)}")


def leaked_speakers(manifests: Mapping[str, Manifest], training: Collection[str]) -> Iterator[Finding]:
    """Training lines whose speaker is also in an evaluation split, if they are at most a tenth of training.

    More of them are no mistake: some corpora have the same speakers in all splits.

    Args:
        manifests: Manifests by name.
        training: Names of training splits.
    """
    evaluated: dict[str, str] = {}
    for split in manifests.keys() - training:
        evaluated |= {speaker: split for one in manifests[split] if (speaker := speaker_of(one)) is not None}
    if not evaluated:
        return
    found = [
        Finding.of(name, one, "leaked_speaker", f"speaker {speaker} is also in {evaluated[speaker]}")
        for name in training
        for one in manifests[name]
        if (speaker := speaker_of(one)) in evaluated and speaker is not None
    ]
    if len(found) <= _MOST_LEAKED_SPEAKERS * sum(len(manifests[name]) for name in training):
        yield from found


def _copy_of(index: _Index, path: str) -> str | None:
    """A file of evaluation with the content of this file and another name."""
    size = _size(path) if index.sizes else None
    others = [other for other in index.sizes.get(size or -1, ()) if other != path]
    digest = content_digest(path) if others else None
    return next((other for other in others if content_digest(other) == digest), None) if digest else None


def _overlap(one: Utterance, other: Utterance) -> bool:
    """Whether two utterances of one file share audio, and are not the same line of the same manifest."""
    if one.where == other.where and one.where:
        return False
    if one.channel is not None and other.channel is not None and one.channel != other.channel:
        return False
    start, end = max(one.offset, other.offset), min(one.offset + one.duration, other.offset + other.duration)
    return end - start > _OVERLAP_S


def _place(utterance: Utterance) -> str:
    return utterance.where or utterance.id


# At the start of training ------------------------------------------------------------------------------------------


def check_leakage(
    manifests: Mapping[str, Manifest], *, max_leakage: float, contents: bool, console: Console | None, warns: bool
) -> None:
    """Look for audio, texts and speakers of dev and test splits in the train split, and print a table of them.

    Args:
        manifests: The manifests of a run; ``train`` is the training split.
        max_leakage: Largest fraction of a dev or test split whose audio may be in train. 1 skips the check.
        contents: Whether to look for files of the same content under other names.
        console: Where the table is printed; None prints no table.
        warns: Whether to print a line for audio and long texts on standard error if there is no console.

    Raises:
        ManifestError: A split shares more audio than allowed, or nine tenths of it are long texts that train has.
    """
    if max_leakage >= 1 or "train" not in manifests or len(manifests) == 1:
        return
    found: dict[tuple[str, str], list[Finding]] = defaultdict(list)
    for one in leakage(manifests, {"train"}, get_normalizer("lower"), contents=contents):
        if one.split != "train":
            found[one.split, one.finding].append(one)
    shares = {key: len(some) / len(manifests[key[0]]) for key, some in found.items()}
    bad = [
        key
        for key, share in shares.items()
        if (key[1] == "leaked_audio" and share > max_leakage) or (key[1] == "leaked_text" and share >= _MOST_TEXTS)
    ]
    if console is not None and found:
        console.print(leakage_table(found, manifests))
    elif warns:
        for (split, kind), some in found.items():
            if level_of(kind) != "note" and (split, kind) not in bad:
                what = f"{len(some):,} of {len(manifests[split]):,} utterances: {kind}, the first is {some[0].id}"
                print(f"warning: {split}: {what}: {some[0].detail}", file=sys.stderr)
    raise_all([_too_much(manifests[key[0]], found[key], max_leakage) for key in bad])


def leakage_table(found: Mapping[tuple[str, str], Sequence[Finding]], manifests: Mapping[str, Manifest]) -> Table:
    """A table of what splits share with training, by split and finding."""
    table = TitledTable("Shared with training")
    for column in ("split", "finding", "utterances", "%", "first"):
        table.add_column(column, justify="right" if column in ("utterances", "%") else "left")
    for (split, kind), some in sorted(found.items()):
        share = 100 * len(some) / len(manifests[split])
        table.add_row(split, kind, f"{len(some):,}", f"{share:.1f}", f"{some[0].id}: {escape(some[0].detail)}")
    return table


def _too_much(manifest: Manifest, some: Sequence[Finding], max_leakage: float) -> ManifestError:
    what = "audio" if some[0].finding == "leaked_audio" else "text"
    first = "; ".join(f"{one.id}: {one.detail}" for one in some[:3])
    number = f"the {what} of {len(some):,} of {len(manifest):,} utterances is also in training: {first}"
    remedy = f"remove them from one of the splits, or set data.max_leakage=1 to allow it (now {max_leakage:g})"
    return ManifestError(str(manifest.path), number, remedy)
