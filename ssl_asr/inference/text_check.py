"""Texts that do not go with their audio, found by transcribing the audio."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich.console import Console

from ssl_asr.config.tools import CheckConfig
from ssl_asr.data.doctor.findings import Finding
from ssl_asr.data.doctor.report import Report
from ssl_asr.data.doctor.text import ModelLimits, training_names
from ssl_asr.data.identity import row_key
from ssl_asr.data.manifest import Manifest
from ssl_asr.data.text import get_normalizer
from ssl_asr.inference import model as inference_model
from ssl_asr.inference.batches import transcribe_manifests
from ssl_asr.inference.long_form import NO_VAD, LongForm
from ssl_asr.inference.model import InferenceOptions
from ssl_asr.inference.running import RunOptions
from ssl_asr.metrics.edit import char_edits
from ssl_asr.metrics.report import Prediction
from ssl_asr.training.module import ASRModule
from ssl_asr.types import Normalizer

# Character error rates above which a text is not that of the audio: this rate, and this many robust standard deviations
# above the median. A model whose median is above the last number cannot tell.
_LEAST, _DEVIATIONS, _POOR = 0.6, 5.0, 0.5


@dataclass(frozen=True, slots=True)
class TextCheck:
    """Result of `check_texts`.

    Attributes:
        findings: One ``text_mismatch`` for each text that does not go with its audio. Empty if the model is too poor.
        median: Median of the character error rates, as a ratio. NaN if nothing was transcribed.
    """

    findings: list[Finding]
    median: float

    @property
    def is_poor(self) -> bool:
        """Whether the model makes so many errors that wrong texts do not stand out."""
        return not self.median <= _POOR


def check_texts(
    module: ASRModule,
    manifests: Mapping[str, Manifest],
    *,
    normalize: Normalizer,
    run: RunOptions,
    long_form: LongForm,
    console: Console | None,
) -> TextCheck:
    """Transcribe utterances, and compare the transcripts with the texts by character error rate.

    Args:
        module: A model that transcribes.
        manifests: Manifests by name.
        normalize: Normalizer of texts and transcripts.
        run: How the model is run.
        long_form: Settings for recordings that are too long for one pass.
        console: Shows progress; None shows nothing.
    """
    read = {name: manifest for name, manifest in manifests.items() if len(manifest)}
    done = transcribe_manifests(module, read, run=run, long_form=long_form, console=console, tables=False)
    rows = [(name, row) for name, some in done.predictions.items() for row in some]
    rates_N = np.array([_rate(row, normalize) for _, row in rows])
    if not len(rates_N):
        return TextCheck([], float("nan"))
    median = float(np.median(rates_N))
    limit = max(_LEAST, median + _DEVIATIONS * 1.4826 * float(np.median(np.abs(rates_N - median))))
    where = {(name, row_key(one)): one.where for name, manifest in read.items() for one in manifest}
    checked = TextCheck([], median)
    for (name, row), rate in zip(rows, rates_N.tolist(), strict=True):
        if rate > limit and not checked.is_poor:
            what = f"the transcript is {row.hyp[:80]!r}, and the text is {row.ref[:80]!r} (CER {100 * rate:.0f} %)"
            place = where[name, row_key(row)]
            checked.findings.append(Finding(name, row.id, place, "text_mismatch", what, row.duration))
    return checked


def _rate(row: Prediction, normalize: Normalizer) -> float:
    edits = char_edits(*row.pairs(normalize)[1])
    return edits.rate if edits.ref else float(bool(row.hyp))


# For the command ----------------------------------------------------------------------------------------------------


def model_limits(name: str, manifests: Mapping[str, Manifest], *, extensions: Sequence[str]) -> ModelLimits:
    """What a model can take. A model without a tokenizer gets the characters of the training splits.

    Args:
        name: As for `ssl_asr.inference.model.load_model`.
        manifests: Manifests by name.
        extensions: Packages besides this one whose classes the model may use.
    """
    train = [utterance for split in training_names(manifests) for utterance in manifests[split]]
    limits, tokenizer = inference_model.load_limits(name, InferenceOptions(extensions=tuple(extensions)), train)
    return ModelLimits(name=name, limits=limits, tokenizer=tokenizer)


def add_mismatches(
    report: Report, config: CheckConfig, manifests: Mapping[str, Manifest], console: Console | None
) -> None:
    """Add the texts that do not go with their audio to a report. Lines that are left out anyway are not transcribed."""
    options = InferenceOptions(extensions=tuple(config.extensions))
    run = RunOptions(max_batch_s=None, num_workers=0, accelerator="auto", downmix=config.downmix)
    checked = check_texts(
        inference_model.load_model(str(config.model), options),
        {name: report.kept(name, manifest) for name, manifest in manifests.items()},
        normalize=get_normalizer(config.normalizer),
        run=run,
        long_form=NO_VAD,
        console=console,
    )
    report.add(checked.findings)
    if checked.is_poor:
        rate = f"{100 * checked.median:.0f} %"
        print(f"warning: texts are not compared: the model's median character error rate is {rate}", file=sys.stderr)
