"""Settings of a beam search found on dev data, from log-probabilities that the model gives once."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from ssl_asr.decoding.ctc import CtcBeam, greedy_search
from ssl_asr.decoding.ctc_beam import Found
from ssl_asr.metrics.edit import Edits, word_edits
from ssl_asr.metrics.report import Normalizer, Prediction
from ssl_asr.training.ctc import CTCModule

# Utterances searched at once.
_BATCH = 32


class Recorder:
    """A greedy search that keeps the log-probabilities it was given, on the CPU, in order."""

    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def __call__(self, log_probs_BFV: Tensor, frame_lengths_B: Tensor) -> list[list[Found]]:
        """Keep, and search greedily."""
        for log_probs_FV, frames in zip(log_probs_BFV, frame_lengths_B.tolist(), strict=True):
            self.kept.append(log_probs_FV[:frames].to("cpu", copy=True))
        return greedy_search(log_probs_BFV, frame_lengths_B)


@dataclass(frozen=True, slots=True)
class Heard:
    """An utterance's log-probabilities, and what was said."""

    log_probs_FV: Tensor
    prediction: Prediction


class Trials:
    """Scores settings of a search on what was heard.

    Args:
        module: whose labels and spelling they are.
        heard: of dev data.
        normalize: what texts go through before they are compared.
    """

    def __init__(self, module: CTCModule, heard: Sequence[Heard], normalize: Normalizer) -> None:
        self.module = module
        # Utterances of a length together, the longest first.
        self.heard = sorted(heard, key=lambda one: -len(one.log_probs_FV))
        self.normalize = normalize

    def found(self, options: CtcBeam) -> Iterator[tuple[Heard, list[Found]]]:
        """What these settings find of each utterance, best first."""
        search = options.build(self.module.labels)
        for first in range(0, len(self.heard), _BATCH):
            part = self.heard[first : first + _BATCH]
            lengths_B = torch.tensor([len(one.log_probs_FV) for one in part])
            log_probs_BFV = nn.utils.rnn.pad_sequence([one.log_probs_FV for one in part], batch_first=True)
            yield from zip(part, search(log_probs_BFV, lengths_B), strict=True)

    def edits(self, options: CtcBeam) -> Edits:
        """The word errors of these settings, before any second look."""
        first_look = replace(options, rescore_lm=None)
        decode = self.module.tokenizer.decode
        return sum((self._edits(one, decode(best.tokens)) for one, (best, *_) in self.found(first_look)), Edits())

    def _edits(self, one: Heard, said: str) -> Edits:
        lang = one.prediction.lang
        return word_edits(self.normalize(one.prediction.ref, lang), self.normalize(said, lang))

    def rescored(self, options: CtcBeam, pairs: Sequence[tuple[float, float]]) -> dict[tuple[float, float], float]:
        """WER of each pair of weight and word score in a second look at what these settings find.

        The search runs and the language model reads once; the weights are tried on what they said.
        """
        rescorer = options.rescorer()
        assert rescorer is not None
        totals = dict.fromkeys(pairs, Edits())
        for one, found in self.found(options):
            texts = [self.module.tokenizer.decode(each.tokens) for each in found]
            edits = [self._edits(one, text) for text in texts]
            rows = list(zip((each.score for each in found), rescorer.log_probs(texts), texts, strict=True))
            for weight, word_score in pairs:
                scores = [score + weight * log_prob + word_score * len(text.split()) for score, log_prob, text in rows]
                totals[weight, word_score] += edits[max(range(len(scores)), key=scores.__getitem__)]
        return {pair: total.rate for pair, total in totals.items()}


@dataclass(frozen=True, slots=True)
class Tuned:
    """The settings found, their WER on dev, and every trial: (weight, word score) or another setting to WER.

    ``unknown`` is empty where no other words are allowed, ``second`` where there is no second look.
    """

    options: CtcBeam
    wer: float
    weights: dict[tuple[float, float], float]
    unknown: dict[float, float]
    beams: dict[int, float]
    second: dict[tuple[float, float], float]


def tune(
    trials: Trials,
    start: CtcBeam,
    *,
    lm_weights: Sequence[float],
    word_scores: Sequence[float],
    unknown_scores: Sequence[float],
    beam_sizes: Sequence[int],
    rescore_weights: Sequence[float],
    rescore_word_scores: Sequence[float],
    console: Console | None,
) -> Tuned:
    """The best settings of those to try: weights, the price of unknown words, the beam, then a second look's weights.

    Of settings that are equally good the smaller are taken: a tie says that more did not help.
    """
    pairs = _pairs(lm_weights, word_scores)
    shown = console if console is not None else Console(quiet=True)
    weights = {
        pair: trials.edits(replace(start, lm_weight=pair[0], word_score=pair[1])).rate
        for pair in track(pairs, "weights", console=shown, transient=True)
    }
    best = min(pairs, key=weights.__getitem__)
    options = replace(start, lm_weight=best[0], word_score=best[1])
    unknown: dict[float, float] = {}
    if options.unknown_score is not None and (options.lm is not None or options.lexicon is not None):
        unknown = {
            score: trials.edits(replace(options, unknown_score=score)).rate
            for score in track(sorted(unknown_scores, key=abs), "unknown words", console=shown, transient=True)
        }
        options = replace(options, unknown_score=min(unknown, key=unknown.__getitem__))
    beams = {
        size: trials.edits(replace(options, beam_size=size)).rate
        for size in track(sorted(beam_sizes), "beams", console=shown, transient=True)
    }
    size = min(beams, key=beams.__getitem__)
    options = replace(options, beam_size=size)
    if options.rescore_lm is None:
        return Tuned(options, beams[size], weights, unknown, beams, {})
    pairs = _pairs(rescore_weights, rescore_word_scores)
    second = trials.rescored(options, pairs)
    best = min(pairs, key=second.__getitem__)
    options = replace(options, rescore_weight=best[0], rescore_word_score=best[1])
    return Tuned(options, second[best], weights, unknown, beams, second)


def _pairs(weights: Sequence[float], word_scores: Sequence[float]) -> list[tuple[float, float]]:
    """Each with each, the smaller first."""
    return [(weight, score) for weight in sorted(weights) for score in sorted(word_scores, key=abs)]


def show(tuned: Tuned, greedy: float, console: Console) -> None:
    """Print every trial's WER, the ones chosen marked."""
    options = tuned.options
    title = f"WER % on dev; greedy {100 * greedy:.2f}"
    console.print(_grid(title, tuned.weights, (options.lm_weight, options.word_score), "lm_weight", "word_score"))
    if tuned.unknown:
        console.print(_row("and by unknown_score", tuned.unknown, options.unknown_score))
    console.print(_row("and by beam_size", tuned.beams, options.beam_size))
    if tuned.second:
        chosen = (options.rescore_weight, options.rescore_word_score)
        title = f"a second look at the best {options.searched(options.n_best)}"
        console.print(_grid(title, tuned.second, chosen, "rescore_weight", "rescore_word_score"))


def _row(title: str, trials: Mapping[Any, float], chosen: Any) -> Table:
    table = Table(title=title, title_justify="left")
    for value in trials:
        table.add_column(f"{value:g}", justify="right")
    cells = [f"{100 * wer:.2f}" for wer in trials.values()]
    at = list(trials).index(chosen)
    table.add_row(*(f"[bold green]{cell}[/]" if i == at else cell for i, cell in enumerate(cells)))
    return table


def _grid(
    title: str, trials: dict[tuple[float, float], float], chosen: tuple[float, float], weight_key: str, score_key: str
) -> Table:
    scores = sorted({score for _, score in trials})
    table = Table(title=title, title_justify="left")
    table.add_column(weight_key, justify="right")
    for score in scores:
        table.add_column(f"{score_key} {score:g}", justify="right")
    for weight in sorted({weight for weight, _ in trials}):
        row = [(weight, score) for score in scores]
        cells = [f"{100 * trials[pair]:.2f}" for pair in row]
        table.add_row(
            f"{weight:g}",
            *(f"[bold green]{cell}[/]" if pair == chosen else cell for cell, pair in zip(cells, row, strict=True)),
        )
    return table
