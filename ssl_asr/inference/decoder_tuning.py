"""Find the settings of a CTC beam search on dev data.

The model runs once and its log-probabilities are kept. Then, each step with the best settings so far:

    1. every pair of ``lm_weight`` and ``word_score``
    2. every ``unknown_score``, if the decoder allows out-of-vocabulary words
    3. every ``beam_size``
    4. every pair of ``rescore_weight`` and ``rescore_word_score``, if the decoder rescores

If settings have equal WER, the smallest values are chosen.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ssl_asr.console import TitledTable, tracked
from ssl_asr.data.manifest import Manifest
from ssl_asr.decoding.ctc import CtcBeam, CtcSearch, greedy_search
from ssl_asr.decoding.ctc_beam import CtcHypothesis
from ssl_asr.errors import ConfigError, raise_all
from ssl_asr.inference.batches import transcribe_manifests
from ssl_asr.inference.running import RunOptions
from ssl_asr.metrics.edit import Edits, Unit, wer_unit, word_edits
from ssl_asr.metrics.report import Prediction
from ssl_asr.training.ctc import CTCModule
from ssl_asr.training.module import ASRModule
from ssl_asr.types import LabelTokenizer, Normalizer

# Utterances in one batch of a search.
_BATCH_SIZE = 32

Pair = tuple[float, float]
"""A weight and a word score."""


@dataclass(frozen=True, kw_only=True)
class Recorder:
    """A greedy CTC decoder that keeps the log-probabilities it is given, on the CPU, in order."""

    tasks: ClassVar[frozenset[str]] = frozenset({"ctc", "joint"})
    n_best: ClassVar[int] = 1

    log_probs: list[Tensor] = field(default_factory=list)

    def build(self, labels: Sequence[str | None]) -> CtcSearch:
        """The search itself."""
        return self

    def rescorer(self) -> None:
        """No rescoring."""

    def __call__(self, log_probs_BFV: Tensor, frame_lengths_B: Tensor) -> list[list[CtcHypothesis]]:
        """Keep the log-probabilities of each utterance, and search greedily."""
        for log_probs_FV, frames in zip(log_probs_BFV, frame_lengths_B.tolist(), strict=True):
            self.log_probs.append(log_probs_FV[:frames].to("cpu", copy=True))
        return greedy_search(log_probs_BFV, frame_lengths_B)


@dataclass(frozen=True, kw_only=True)
class Recording:
    """Log-probabilities of dev utterances, with their references and greedy hypotheses.

    Attributes:
        tokenizer: Spells the labels.
        rows: Log-probabilities and prediction of each utterance.
    """

    tokenizer: LabelTokenizer
    rows: list[tuple[Tensor, Prediction]]


def record(
    module: ASRModule, manifests: dict[str, Manifest], start: CtcBeam, *, run: RunOptions, console: Console | None
) -> Recording:
    """Run the model over dev manifests once.

    Args:
        module: A model with a CTC layer.
        manifests: Dev manifests by name.
        start: The decoder to tune. Its files are read before the model runs, so that errors come first.
        run: How the model is run.
        console: Shows progress; None shows nothing.

    Raises:
        ConfigError: The model has no CTC layer.
        LanguageModelError: A file of the decoder is missing or wrong.
        ManifestError: More of a manifest is unreadable than ``run.max_skip_fraction``.
    """
    if not module.aligns:
        what = "has no CTC layer, and only the beam search of CTC is tuned"
        raise ConfigError("model", what, "give a CTC or joint run")
    tokenizer = cast(CTCModule, module).tokenizer
    start.build(tokenizer.labels())
    recorder = Recorder()
    module.set_decoder(recorder)
    rows: list[Prediction] = []
    done = transcribe_manifests(
        module, manifests, run=run, on_predictions=lambda done, _: rows.extend(done), console=console
    )
    done.refuse(manifests, run.max_skip_fraction, prefix="")
    raise_all(done.refused)
    return Recording(tokenizer=tokenizer, rows=list(zip(recorder.log_probs, rows, strict=True)))


class Trials:
    """Scores settings of a search on recorded log-probabilities.

    Args:
        recording: Of dev utterances.
        normalize: Text normalizer of the WER.
    """

    def __init__(self, recording: Recording, normalize: Normalizer) -> None:
        self.tokenizer = recording.tokenizer
        self._greedy = [prediction for _, prediction in recording.rows]
        # Utterances of similar length share a batch, the longest first.
        self._rows = sorted(recording.rows, key=lambda row: -len(row[0]))
        self._normalize = normalize

    def _found(self, options: CtcBeam) -> Iterator[tuple[Prediction, list[CtcHypothesis]]]:
        """The search's results for each utterance, best first."""
        search = options.build(self.tokenizer.labels())
        for first in range(0, len(self._rows), _BATCH_SIZE):
            part = self._rows[first : first + _BATCH_SIZE]
            lengths_B = torch.tensor([len(log_probs_FV) for log_probs_FV, _ in part])
            log_probs_BFV = nn.utils.rnn.pad_sequence([log_probs_FV for log_probs_FV, _ in part], batch_first=True)
            predictions = (prediction for _, prediction in part)
            yield from zip(predictions, search(log_probs_BFV, lengths_B), strict=True)

    @property
    def unit(self) -> Unit:
        """What the WER counts; see `ssl_asr.metrics.edit`."""
        return wer_unit(row.pair(self._normalize) for row in self._greedy)

    def _edits(self, prediction: Prediction, text: str) -> Edits:
        return word_edits(*replace(prediction, hyp=text).pair(self._normalize))

    def greedy_wer(self) -> float:
        """WER of greedy decoding."""
        return sum((self._edits(prediction, prediction.hyp) for prediction in self._greedy), Edits()).rate

    def wer(self, options: CtcBeam) -> float:
        """WER of a search, without rescoring."""
        searched = self._found(replace(options, rescore_lm=None))
        decode = self.tokenizer.decode
        edits = (self._edits(prediction, decode(best.tokens)) for prediction, (best, *_) in searched)
        return sum(edits, Edits()).rate

    def rescored(self, options: CtcBeam, pairs: Sequence[Pair]) -> dict[Pair, float]:
        """WER of rescoring by each pair of weight and word score. The search and the language model run once."""
        rescorer = options.rescorer()
        assert rescorer is not None
        totals = dict.fromkeys(pairs, Edits())
        for prediction, found in self._found(options):
            texts = [self.tokenizer.decode(each.tokens) for each in found]
            edits = [self._edits(prediction, text) for text in texts]
            rows = list(zip((each.score for each in found), rescorer.log_probs(texts), texts, strict=True))
            for weight, word_score in pairs:
                scores = [score + weight * log_prob + word_score * len(text.split()) for score, log_prob, text in rows]
                totals[weight, word_score] += edits[max(range(len(scores)), key=scores.__getitem__)]
        return {pair: total.rate for pair, total in totals.items()}


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The values that are tried; see `ssl_asr.config.schemas.TuneDecodingConfig`."""

    lm_weights: Sequence[float]
    word_scores: Sequence[float]
    unknown_scores: Sequence[float]
    beam_sizes: Sequence[int]
    rescore_weights: Sequence[float]
    rescore_word_scores: Sequence[float]


@dataclass(frozen=True, slots=True)
class Tuned:
    """The best settings, their WER, and the WER of every trial.

    Attributes:
        options: The best settings.
        wer: Their WER on dev.
        weights: WER by language-model weight and word score.
        unknown: WER by ``unknown_score``. Empty if out-of-vocabulary words are not allowed.
        beams: WER by beam size.
        rescoring: WER by rescoring weight and word score. Empty without rescoring.
    """

    options: CtcBeam
    wer: float
    weights: dict[Pair, float]
    unknown: dict[float, float]
    beams: dict[int, float]
    rescoring: dict[Pair, float]


def tune(trials: Trials, start: CtcBeam, grid: Grid, *, console: Console | None) -> Tuned:
    """Find the best settings by the four steps of the module docstring."""

    def tried(values: Sequence[Any], title: str, changed: Any) -> dict[Any, float]:
        bar = tracked(values, title, console=console, shown=console is not None)
        return {value: trials.wer(changed(value)) for value in bar}

    weights = tried(
        _pairs(grid.lm_weights, grid.word_scores),
        "weights",
        lambda pair: replace(start, lm_weight=pair[0], word_score=pair[1]),
    )
    lm_weight, word_score = _best(weights)
    options = replace(start, lm_weight=lm_weight, word_score=word_score)
    unknown: dict[float, float] = {}
    if options.unknown_score is not None and (options.lm is not None or options.lexicon is not None):
        scores = sorted(grid.unknown_scores, key=abs)
        unknown = tried(scores, "out-of-vocabulary words", lambda score: replace(options, unknown_score=score))
        options = replace(options, unknown_score=_best(unknown))
    beams = tried(sorted(grid.beam_sizes), "beams", lambda size: replace(options, beam_size=size))
    options = replace(options, beam_size=_best(beams))
    if options.rescore_lm is None:
        return Tuned(options, beams[options.beam_size], weights, unknown, beams, {})
    rescoring = trials.rescored(options, _pairs(grid.rescore_weights, grid.rescore_word_scores))
    weight, word_score = _best(rescoring)
    options = replace(options, rescore_weight=weight, rescore_word_score=word_score)
    return Tuned(options, rescoring[weight, word_score], weights, unknown, beams, rescoring)


def _best(trials: Mapping[Any, float]) -> Any:
    """The setting with the lowest WER, the first of several."""
    return min(trials, key=trials.__getitem__)


def _pairs(weights: Sequence[float], word_scores: Sequence[float]) -> list[Pair]:
    """Every combination, smaller values first."""
    return [(weight, score) for weight in sorted(weights) for score in sorted(word_scores, key=abs)]


def show(tuned: Tuned, greedy_wer: float, unit: Unit, console: Console) -> None:
    """Print the WER of every trial, the chosen settings in green. ``unit`` is what the WER counts."""
    options = tuned.options
    title = f"WER % on dev ({unit}); greedy {100 * greedy_wer:.2f}"
    console.print(_grid(title, tuned.weights, (options.lm_weight, options.word_score), "lm_weight", "word_score"))
    if tuned.unknown:
        console.print(_row("then by unknown_score", tuned.unknown, options.unknown_score))
    console.print(_row("then by beam_size", tuned.beams, options.beam_size))
    if tuned.rescoring:
        chosen = (options.rescore_weight, options.rescore_word_score)
        title = f"rescoring of the best {options.searched(options.n_best)}"
        console.print(_grid(title, tuned.rescoring, chosen, "rescore_weight", "rescore_word_score"))


def _row(title: str, trials: Mapping[Any, float], chosen: Any) -> Table:
    table = TitledTable(title)
    for value in trials:
        table.add_column(f"{value:g}", justify="right")
    cells = [f"{100 * wer:.2f}" for wer in trials.values()]
    at = list(trials).index(chosen)
    table.add_row(*(f"[bold green]{cell}[/]" if i == at else cell for i, cell in enumerate(cells)))
    return table


def _grid(title: str, trials: Mapping[Pair, float], chosen: Pair, weight_key: str, score_key: str) -> Table:
    scores = sorted({score for _, score in trials})
    table = TitledTable(title)
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
