"""Texts of manifests: lengths, characters, speaking rates, and limits of a model."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from unicodedata import east_asian_width

import numpy as np
from numpy.typing import NDArray

from ssl_asr.data.doctor.findings import Finding
from ssl_asr.data.filters import Limits, fault_of
from ssl_asr.data.manifest import Manifest
from ssl_asr.types import Normalizer, Tokenizer, Utterance

# Fewer utterances say too little about the usual speaking rate.
_FEWEST = 20
# Deviation of the logarithm of a duration from the usual one, in robust standard deviations, and at least this factor.
_DEVIATIONS, _FACTOR = 5.0, 1.6
# Letters of alphabets per second that nobody speaks: fast speech has 25. A character of Chinese, Japanese or Korean
# takes the time of three. Durations below the last number are too short to tell.
_FASTEST, _WIDE, _SHORTEST_S = 40.0, 3, 0.1
# Other utterances that each utterance is compared with.
_PAIRS = 50


@dataclass(frozen=True, kw_only=True)
class ModelLimits:
    """What a model can take.

    Attributes:
        name: Name of the model, for messages.
        limits: Limits on duration, tokens and frames.
        tokenizer: Encodes the texts.
    """

    name: str
    limits: Limits
    tokenizer: Tokenizer


def training_names(names: Collection[str]) -> frozenset[str]:
    """The names of training splits: those that contain ``train``, or the first name if none does.

    Example:
        >>> sorted(training_names(["train", "librispeech_train_1h", "dev"])), sorted(training_names(["a", "b"]))
        (['librispeech_train_1h', 'train'], ['a'])
    """
    named = frozenset(name for name in names if "train" in name.lower())
    return named or frozenset(list(names)[:1])


def text_findings(
    manifests: Mapping[str, Manifest], training: Collection[str], normalize: Normalizer, model: ModelLimits | None
) -> Iterator[Finding]:
    """Empty texts, texts that the model cannot learn or spell, and characters that only evaluation has.

    Args:
        manifests: Manifests by name.
        training: Names of training splits. Only their texts have to fit the model.
        normalize: Normalizer of the texts.
        model: What the model can take, or None.
    """
    for split, manifest in manifests.items():
        for utterance in manifest:
            empty = [text for text in utterance.texts if not normalize(text, utterance.lang).strip()]
            if empty and (split in training or len(empty) == len(utterance.texts)):
                yield Finding.of(split, utterance, "empty_text", f"the text is {empty[0][:40]!r}")
            elif model is not None:
                yield from _model_findings(split, utterance, model, trains=split in training)
    yield from _unseen(manifests, training, normalize)


def _model_findings(split: str, utterance: Utterance, model: ModelLimits, *, trains: bool) -> Iterator[Finding]:
    unseen = [label for one in utterance.variants() for label in model.tokenizer.unseen(one)] if trains else []
    if unseen:
        labels = ", ".join(map(repr, dict.fromkeys(unseen)))
        yield Finding.of(split, utterance, "unseen_labels", f"{model.name} cannot spell {labels}")
    fault = fault_of(utterance, model.limits, model.tokenizer if trains else None)
    if fault is not None:
        yield Finding.of(split, utterance, fault.reason, fault.detail)


def characters_of(manifest: Manifest, normalize: Normalizer) -> Counter[str]:
    """Number of each character in the normalized texts, spaces left out."""
    counts: Counter[str] = Counter()
    for utterance in manifest:
        for text in utterance.texts:
            counts.update(normalize(text, utterance.lang))
    del counts[" "]
    return counts


def _unseen(manifests: Mapping[str, Manifest], training: Collection[str], normalize: Normalizer) -> Iterator[Finding]:
    """Lines of evaluation splits with characters that no training split has."""
    known = {" ", *(character for split in training for character in characters_of(manifests[split], normalize))}
    for split, manifest in manifests.items():
        if split in training:
            continue
        for utterance in manifest:
            seen = {character for text in utterance.texts for character in normalize(text, utterance.lang)}
            unseen = sorted(seen - known)
            if unseen:
                shown = ", ".join(f"{character!r} U+{ord(character):04X}" for character in unseen)
                yield Finding.of(split, utterance, "unseen_characters", f"no training text has {shown}")


def rate_findings(split: str, utterances: Sequence[Utterance], seconds_N: NDArray[np.float64]) -> Iterator[Finding]:
    """Utterances whose duration does not go with the length of their text: ``impossible_rate`` and ``rate_outlier``.

    More than 40 letters per second are impossible, however few utterances there are. For outliers, at least 20 are
    compared.

    The usual duration is ``pause + characters * time``, see `usual_durations`. An utterance is an outlier if both its
    duration, compared with the usual one, and its characters per second, compared with the median, are a factor of more
    than 1.6 away, and by more than five robust standard deviations of the logarithm. The fitted
    line is uncertain at its ends, and the characters per second of very short texts vary, so that both are needed.

    Args:
        split: Name of the manifest.
        utterances: Utterances with audio and text.
        seconds_N: Their decoded durations.
    """
    impossible = list(_impossible(split, utterances, seconds_N))
    yield from impossible
    characters_N = np.array([len(utterance.text.replace(" ", "")) for utterance in utterances], dtype=np.float64)
    if len(utterances) < _FEWEST:
        return
    usual_N = usual_durations(characters_N, seconds_N)
    rates_N = np.maximum(characters_N, 1) / seconds_N
    # Slow where the duration is long.
    apart_N = _beyond(seconds_N / usual_N) - _beyond(rates_N)
    known = {(one.where, one.id) for one in impossible}
    for i in np.flatnonzero(np.abs(apart_N) == 2).tolist():
        if (utterances[i].where, utterances[i].id) in known:
            continue
        what = f"{characters_N[i]:.0f} characters in {seconds_N[i]:.2f} s ({rates_N[i]:.1f} per second), usually "
        yield Finding.of(split, utterances[i], "rate_outlier", f"{what}{usual_N[i]:.2f} s for such a text")


def _impossible(split: str, utterances: Sequence[Utterance], seconds_N: NDArray[np.float64]) -> Iterator[Finding]:
    """Utterances with more characters per second than anybody speaks, whatever the others have."""
    for utterance, seconds in zip(utterances, seconds_N.tolist(), strict=True):
        letters = "".join(filter(str.isalnum, utterance.text))
        spoken = sum(_WIDE if east_asian_width(letter) in "WF" else 1 for letter in letters)
        if spoken > _FASTEST * max(seconds, _SHORTEST_S):
            what = f"{len(letters)} letters and digits in {seconds:.2f} s ({len(letters) / seconds:.0f} per second)"
            yield Finding.of(split, utterance, "impossible_rate", what)


def _beyond(ratios_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """1 for ratios far above the median, -1 for ratios far below it, and 0 for all others."""
    log_N = np.log(ratios_N)
    log_N -= np.median(log_N)
    limit = max(_DEVIATIONS * 1.4826 * float(np.median(np.abs(log_N))), float(np.log(_FACTOR)))
    return np.sign(log_N).astype(np.int64) * (np.abs(log_N) > limit)


def usual_durations(characters_N: NDArray[np.float64], seconds_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Durations that the line of Theil and Sen gives: the median slope of pairs of utterances, and a median pause.

    Up to a quarter of the utterances may be wrong, and the line stays. Each utterance is paired with at most 50 others.

    Args:
        characters_N: Characters of each text.
        seconds_N: Seconds of each audio, above 0.
    """
    order_N = np.random.default_rng(0).permutation(len(seconds_N))
    slopes = []
    for shift in range(1, min(len(order_N), _PAIRS + 1)):
        other_N = np.roll(order_N, shift)
        step_N = characters_N[order_N] - characters_N[other_N]
        apart_N = step_N != 0
        slopes.append((seconds_N[order_N] - seconds_N[other_N])[apart_N] / step_N[apart_N])
    all_N = np.concatenate([np.zeros(0), *slopes])
    per_character = max(0.0, float(np.median(all_N))) if len(all_N) else 0.0
    pause = float(np.median(seconds_N - per_character * characters_N))
    # Texts of a few characters, of which the line may say that they take no time.
    shortest = 0.5 * float(np.quantile(seconds_N, 0.01))
    usual_N: NDArray[np.float64] = np.maximum(pause + per_character * characters_N, shortest)
    return usual_N
