"""Settings of a beam search found on dev data, from log-probabilities that the model gives once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

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

    def edits(self, options: CtcBeam) -> Edits:
        """The word errors of these settings."""
        search = options.build(self.module.labels)
        total = Edits()
        for first in range(0, len(self.heard), _BATCH):
            part = self.heard[first : first + _BATCH]
            lengths_B = torch.tensor([len(one.log_probs_FV) for one in part])
            log_probs_BFV = nn.utils.rnn.pad_sequence([one.log_probs_FV for one in part], batch_first=True)
            for one, found in zip(part, search(log_probs_BFV, lengths_B), strict=True):
                said, lang = self.module.tokenizer.decode(found[0].tokens), one.prediction.lang
                total += word_edits(self.normalize(one.prediction.ref, lang), self.normalize(said, lang))
        return total


@dataclass(frozen=True, slots=True)
class Tuned:
    """The settings found, their WER on dev, and every trial: (weight, word score) or beam size to WER."""

    options: CtcBeam
    wer: float
    weights: dict[tuple[float, float], float]
    beams: dict[int, float]


def tune(
    trials: Trials,
    start: CtcBeam,
    *,
    lm_weights: Sequence[float],
    word_scores: Sequence[float],
    beam_sizes: Sequence[int],
    console: Console | None,
) -> Tuned:
    """The best settings among those to try, weights first, then the beam.

    Of settings that are equally good the smaller are taken: a tie says that more did not help.
    """
    pairs = [(weight, score) for weight in sorted(lm_weights) for score in sorted(word_scores, key=abs)]
    shown = console if console is not None else Console(quiet=True)
    weights = {
        pair: trials.edits(replace(start, lm_weight=pair[0], word_score=pair[1])).rate
        for pair in track(pairs, "weights", console=shown, transient=True)
    }
    best = min(pairs, key=weights.__getitem__)
    options = replace(start, lm_weight=best[0], word_score=best[1])
    beams = {
        size: trials.edits(replace(options, beam_size=size)).rate
        for size in track(sorted(beam_sizes), "beams", console=shown, transient=True)
    }
    size = min(beams, key=beams.__getitem__)
    return Tuned(replace(options, beam_size=size), beams[size], weights, beams)


def show(tuned: Tuned, greedy: float, console: Console) -> None:
    """Print every trial's WER, the ones chosen marked."""
    scores = sorted({score for _, score in tuned.weights})
    table = Table(title=f"WER % on dev; greedy {100 * greedy:.2f}", title_justify="left")
    table.add_column("lm_weight", justify="right")
    for score in scores:
        table.add_column(f"word_score {score:g}", justify="right")
    chosen = (tuned.options.lm_weight, tuned.options.word_score)
    for weight in sorted({weight for weight, _ in tuned.weights}):
        row = [(weight, score) for score in scores]
        cells = [f"{100 * tuned.weights[pair]:.2f}" for pair in row]
        marked = [f"[bold green]{c}[/]" if pair == chosen else c for c, pair in zip(cells, row, strict=True)]
        table.add_row(f"{weight:g}", *marked)
    console.print(table)
    table = Table(title="and by beam_size", title_justify="left")
    for size in tuned.beams:
        table.add_column(f"{size}", justify="right")
    cells = [f"{100 * wer:.2f}" for wer in tuned.beams.values()]
    at = list(tuned.beams).index(tuned.options.beam_size)
    table.add_row(*(f"[bold green]{cell}[/]" if i == at else cell for i, cell in enumerate(cells)))
    console.print(table)
