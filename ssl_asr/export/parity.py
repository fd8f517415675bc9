"""Compares the transcripts of an exported model with those of the model that was exported.

    utterances -> this package      -> texts --+-- equal? each difference, the WER between both, the WER of both
               -> the exported files,          |
                  in their own runtime -> texts+

Both sides search greedily, one utterance at a time. Whisper is compared at 30 s, and with real lengths if the runtime
can encode less than 30 s. At 30 s the texts have to agree. What real lengths give is measured. Where the runtime times
words, their starts have to agree too, see `ssl_asr.export.word_times`.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ssl_asr.data.dataset import collate
from ssl_asr.decoding.ctc import CtcGreedy
from ssl_asr.decoding.seq2seq import WhisperGreedy
from ssl_asr.export.base import ExportModel, Runtime
from ssl_asr.export.word_times import TimeComparison, compare_times, timed_examples
from ssl_asr.metrics.edit import Edits, word_edits
from ssl_asr.metrics.report import Prediction, Score, score_predictions
from ssl_asr.models.encoder import Window
from ssl_asr.training.module import ASRModule
from ssl_asr.types import SAMPLE_RATE, Example, Hypothesis, Normalizer, Seconds

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Difference:
    """An utterance whose text changed.

    Attributes:
        id: Utterance id.
        ours: Text of the model that was exported.
        theirs: Text of the exported model in its runtime.
    """

    id: str
    ours: str
    theirs: str


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Transcripts of both models of the same utterances.

    Attributes:
        window: Window of Whisper's encoder. None for models without a window.
        required: Whether the texts have to agree.
        utterances: Number of utterances.
        audio_s: Seconds of audio.
        differences: Utterances whose texts differ. Runs of spaces count as one space.
        edits: Edits from our texts to those of the runtime.
        scores: WER of our texts and of the runtime's, by normalizer. Empty without references.
        seconds: Time that each side took.
    """

    window: Window | None
    required: bool
    utterances: int
    audio_s: Seconds
    differences: list[Difference]
    edits: Edits
    scores: dict[str, tuple[Score, Score]]
    seconds: tuple[Seconds, Seconds]

    @property
    def change(self) -> float:
        """WER of the runtime's texts with our texts as references, as a ratio."""
        return self.edits.rate

    def record(self) -> dict[str, Any]:
        """Plain data for ``export.json``."""
        return {
            "window": self.window,
            "required": self.required,
            "utterances": self.utterances,
            "audio_s": round(self.audio_s, 2),
            "same_text": self.utterances - len(self.differences),
            "change": self.change,
            "wer": {
                name: {"ssl_asr": _scored(ours), "exported": _scored(theirs)}
                for name, (ours, theirs) in self.scores.items()
            },
            "seconds": {"ssl_asr": round(self.seconds[0], 2), "exported": round(self.seconds[1], 2)},
            "differences": [{"id": one.id, "ssl_asr": one.ours, "exported": one.theirs} for one in self.differences],
        }


def _scored(score: Score) -> dict[str, float]:
    return {"wer": score.wer, "wer_low": score.wer_low, "wer_high": score.wer_high}


@dataclass(kw_only=True)
class Parity:
    """Everything that was compared.

    Attributes:
        comparisons: One for models without a window, otherwise one for each window.
        own: WER of our texts with the window of the model, by normalizer, if the runtime has not this window.
        times: How word times compare. None if the runtime times no words.
        max_change: Largest `Comparison.change` where texts have to agree.
    """

    comparisons: list[Comparison] = field(default_factory=list)
    own: dict[str, Score] = field(default_factory=dict)
    times: TimeComparison | None = None
    max_change: float

    def failed(self) -> Comparison | None:
        """The first comparison whose texts have to agree and differ too much."""
        return next((one for one in self.comparisons if one.required and one.change > self.max_change), None)

    def real_lengths_hold(self) -> bool:
        """Whether the runtime, with real lengths, writes the texts of this package with real lengths."""
        real = [one for one in self.comparisons if one.window == "real"]
        return bool(real) and all(one.change <= self.max_change for one in real)

    def record(self) -> dict[str, Any]:
        """Plain data for ``export.json``."""
        own = {"own_window": {name: _scored(score) for name, score in self.own.items()}} if self.own else {}
        comparisons = [one.record() for one in self.comparisons]
        times = {} if self.times is None else {"word_times": self.times.record()}
        return {"max_change": self.max_change, "comparisons": comparisons, **times, **own}


def set_greedy(module: ASRModule) -> None:
    """Decode greedily, as the runtimes do."""
    greedy = {"seq2seq": WhisperGreedy(suppress=True, max_tokens_per_s=None)}
    module.set_decoder(greedy.get(module.task_name, CtcGreedy()))


def check_parity(
    model: ExportModel,
    runtime: Runtime,
    examples: Sequence[Example],
    *,
    real_length: bool,
    max_change: float,
    normalizers: dict[str, Normalizer],
    console: Console | None,
) -> Parity:
    """Transcribe the same utterances with both models.

    Args:
        model: The model that was exported. Its decoder is set to greedy search.
        runtime: The exported files in their runtime.
        examples: Utterances that fit the model, with their audio.
        real_length: Whether the runtime can encode less than 30 s.
        max_change: See `Parity`.
        normalizers: Text normalizers by name.
        console: Shows progress; None shows nothing.
    """
    module = model.module
    set_greedy(module)
    parity = Parity(max_change=max_change)
    windows: list[Window | None] = [None] if model.window is None else ["30s"]
    windows += ["real"] if model.window is not None and real_length else []
    referenced = any(example.utterance.text for example in examples)
    normalizers = normalizers if referenced else {}
    with _progress(console) as bar:
        for window in windows:
            parity.comparisons.append(_compare(module, runtime, examples, window, normalizers, bar))
            if window != "real":
                parity.times = _compare_times(model, runtime, examples, bar)
        if model.window is not None and model.window not in windows and referenced:
            module.speech_encoder.set_window(model.window, None)
            texts = list(_tracked(bar, f"ssl_asr, window={model.window}", transcribed(module, examples), len(examples)))
            parity.own = {name: _score(examples, texts, name, one) for name, one in normalizers.items()}
    if model.window is not None:
        module.speech_encoder.set_window(model.window, None)
    return parity


def _compare(
    module: ASRModule,
    runtime: Runtime,
    examples: Sequence[Example],
    window: Window | None,
    normalizers: dict[str, Normalizer],
    bar: Progress,
) -> Comparison:
    if window is not None:
        module.speech_encoder.set_window(window, None)
    suffix = "" if window is None else f", window={window}"
    start = time.perf_counter()
    ours = list(_tracked(bar, f"ssl_asr{suffix}", transcribed(module, examples), len(examples)))
    middle = time.perf_counter()
    waveforms = [example.waveform_T for example in examples]
    texts = runtime.transcribe(waveforms, real_length=window == "real")
    theirs = list(_tracked(bar, f"exported{suffix}", texts, len(examples)))
    end = time.perf_counter()
    pairs = [(_spaced(one), _spaced(other)) for one, other in zip(ours, theirs, strict=True)]
    ids = [example.utterance.id for example in examples]
    return Comparison(
        window=window,
        required=window != "real",
        utterances=len(examples),
        audio_s=sum(len(waveform_T) for waveform_T in waveforms) / SAMPLE_RATE,
        differences=[Difference(name, *pair) for name, pair in zip(ids, pairs, strict=True) if pair[0] != pair[1]],
        edits=sum((word_edits(*pair) for pair in pairs), Edits()),
        scores={
            name: (_score(examples, ours, name, one), _score(examples, theirs, name, one))
            for name, one in normalizers.items()
        },
        seconds=(middle - start, end - middle),
    )


def _compare_times(
    model: ExportModel, runtime: Runtime, examples: Sequence[Example], bar: Progress
) -> TimeComparison | None:
    chosen = timed_examples(examples)
    theirs = runtime.words([example.waveform_T for example in chosen])
    if theirs is None or model.module.confidence_measure("max_prob", required=False) is None:
        return None
    return compare_times(model, _tracked(bar, "word times", theirs, len(chosen)), chosen)


@torch.inference_mode()
def transcribed(module: ASRModule, examples: Iterable[Example]) -> Iterator[str]:
    """The text of each utterance alone. Runtimes get the audio only, so languages of the manifest are not used."""
    for example in examples:
        utterance = replace(example.utterance, lang=None, task=None)
        [hypothesis] = module.transcribe(collate([replace(example, utterance=utterance)]))
        yield hypothesis.text


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _score(examples: Sequence[Example], texts: Sequence[str], name: str, normalize: Normalizer) -> Score:
    pairs = zip(examples, texts, strict=True)
    rows = [Prediction.of(one.utterance, Hypothesis(one.utterance.id, text, 0.0)) for one, text in pairs]
    return score_predictions(rows, name, normalize)


@contextmanager
def _progress(console: Console | None) -> Iterator[Progress]:
    """A bar for each side of each comparison, removed at the end."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=console is None) as bar:
        yield bar


def _tracked(bar: Progress, name: str, items: Iterable[Item], total: int) -> Iterator[Item]:
    task = bar.add_task(name, total=total)
    for item in items:
        bar.advance(task)
        yield item
