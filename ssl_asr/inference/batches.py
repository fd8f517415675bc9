"""Transcribe manifests in batches of similar length, with Lightning's test loop."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from rich.console import Console

from ssl_asr.data.batching import Batching
from ssl_asr.data.filters import Limits, skips_error
from ssl_asr.data.identity import row_key
from ssl_asr.data.manifest import Manifest
from ssl_asr.data.module import ASRDataModule
from ssl_asr.data.options import DataConfig
from ssl_asr.data.signal import print_notices
from ssl_asr.errors import ManifestError
from ssl_asr.inference.ahead import EncoderAhead, Ready
from ssl_asr.inference.long_form import NO_VAD, LongForm, check_detection
from ssl_asr.inference.long_run import LongRun
from ssl_asr.inference.running import RunOptions
from ssl_asr.inference.voice import transcribe_short
from ssl_asr.metrics.report import Prediction, write_predictions
from ssl_asr.models.encoder import SpeechEncoder
from ssl_asr.training.module import TEXT_ONLY, ASRModule, TranscribeOptions, gathered
from ssl_asr.training.skips import over_ranks
from ssl_asr.training.trainer import make_inference_trainer
from ssl_asr.types import Batch, Notice, Skip, Tokenizer

PredictionsCallback = Callable[[Sequence[Prediction], Sequence[Notice]], None]
"""Called with the predictions of each finished batch, and of each finished long recording, and with the findings in
their audio."""


@dataclass(slots=True)
class Transcripts:
    """Predictions and skipped utterances of each manifest, by name.

    Attributes:
        predictions: Transcribed utterances.
        skips: The other utterances, with reasons.
        refused: An error for each manifest that lost too many utterances to be scored, see `refuse`.
        batching: Figures of the batches of each manifest. Long recordings, which have batches of their own, are not in
            them.
        checkpoints: File of the weights that transcribed each manifest, if it is a checkpoint of a run.
        notices: Findings in the audio.
    """

    predictions: dict[str, list[Prediction]] = field(default_factory=dict)
    skips: dict[str, list[Skip]] = field(default_factory=dict)
    refused: list[ManifestError] = field(default_factory=list)
    batching: dict[str, Batching] = field(default_factory=dict)
    checkpoints: dict[str, str] = field(default_factory=dict)
    notices: list[Notice] = field(default_factory=list)

    def refuse(
        self, manifests: Mapping[str, Manifest], max_skip_fraction: float, *, prefix: str, folder: Path | None = None
    ) -> None:
        """Take out manifests that lost too many utterances to be scored, and note an error for each.

        Args:
            manifests: The whole manifests.
            max_skip_fraction: Largest fraction of a manifest that may be skipped.
            prefix: Start of the key ``max_skip_fraction`` in the command's config.
            folder: Folder for ``predictions/NAME.jsonl`` of the manifests that are taken out. Default: None (not
                written).
        """
        for name, skips in self.skips.items():
            if len(skips) / len(manifests[name]) > max_skip_fraction:
                rows = self.predictions.pop(name)
                self.refused.append(skips_error(manifests[name], skips, max_skip_fraction, prefix=prefix))
                if folder is not None and rows:
                    write_predictions(folder / "predictions" / f"{name}.jsonl", rows)

    def add(self, other: "Transcripts") -> None:
        """Add the predictions and skips of another run to those of the same name."""
        for name, rows in other.predictions.items():
            self.predictions.setdefault(name, []).extend(rows)
        for name, skips in other.skips.items():
            self.skips.setdefault(name, []).extend(skips)
        self.refused += other.refused
        self.batching |= other.batching
        self.checkpoints |= other.checkpoints
        self.notices += other.notices

    def sort(self, manifests: Mapping[str, Manifest]) -> None:
        """Put the predictions in the order of their manifests."""
        for name, manifest in manifests.items():
            ranks = {row_key(utterance): rank for rank, utterance in enumerate(manifest)}
            self.predictions[name].sort(key=lambda row: ranks[row_key(row)])

    def renamed(self, suffix: str) -> "Transcripts":
        """The same transcripts with a suffix on every name."""
        return Transcripts(
            {f"{name}{suffix}": rows for name, rows in self.predictions.items()},
            {f"{name}{suffix}": skips for name, skips in self.skips.items()},
            self.refused,
            {f"{name}{suffix}": one for name, one in self.batching.items()},
            {f"{name}{suffix}": path for name, path in self.checkpoints.items()},
            self.notices,
        )

    def about(self, model: str | None) -> dict[str, Any]:
        """Plain data for ``results.json``: the model as it was named, its checkpoints, and figures of the batches."""
        batches = {name: one.record() for name, one in self.batching.items()}
        found = {"model": model, "checkpoints": self.checkpoints, "batches": batches}
        return {key: value for key, value in found.items() if value}


def ignore_predictions(_: Sequence[Prediction], __: Sequence[Notice]) -> None:
    """A `PredictionsCallback` that does nothing."""


class TranscriptionLoop(L.LightningModule):
    """Transcribes the test splits of a data module and collects the predictions.

    Args:
        module: The model.
        names: Names of the test splits, in the order of their loaders.
        options: What is returned besides text.
        on_predictions: Called after each batch.
        long_form: Voice activity detection.
    """

    def __init__(
        self,
        module: ASRModule,
        *,
        names: Sequence[str],
        options: TranscribeOptions,
        on_predictions: PredictionsCallback = ignore_predictions,
        long_form: LongForm = NO_VAD,
    ) -> None:
        super().__init__()
        self._long_form = long_form
        self.module = module
        self._names, self._options, self._on_predictions = list(names), options, on_predictions
        self._ahead: EncoderAhead[str] = EncoderAhead(module)
        self.predictions: dict[str, list[Prediction]] = {name: [] for name in names}
        self.skipped: dict[str, list[Skip]] = {name: [] for name in names}

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Transcribe one batch; on a GPU, the one before it, see `EncoderAhead`."""
        name = self._names[dataloader_idx]
        self.skipped[name] += batch.skipped
        if not len(batch):
            return
        # With ``vad``, parts of the batch are encoded, not the whole.
        is_whole = self._long_form.vad is not True
        self._decode(self._ahead.put(name, batch) if is_whole else Ready(name, batch, None))

    def on_test_epoch_end(self) -> None:
        """Transcribe the last batch."""
        self._decode(self._ahead.rest())

    def _decode(self, ready: Ready[str] | None) -> None:
        if ready is None:
            return
        hypotheses = transcribe_short(self.module, ready.batch, self._long_form, self._options, ready.out)
        pairs = zip(ready.batch.utterances, hypotheses, strict=True)
        rows = [Prediction.of(utterance, hypothesis) for utterance, hypothesis in pairs]
        self.predictions[ready.key] += rows
        self._on_predictions(rows, ready.batch.notices)


def transcribe_splits(
    trainer: L.Trainer,
    module: ASRModule,
    data: ASRDataModule,
    options: TranscribeOptions = TEXT_ONLY,
    on_predictions: PredictionsCallback = ignore_predictions,
    long_form: LongForm = NO_VAD,
) -> Transcripts:
    """Transcribe every test split of a data module. Skips include what was dropped before the run."""
    loop = TranscriptionLoop(
        module, names=data.test_names, options=options, on_predictions=on_predictions, long_form=long_form
    )
    trainer.test(loop, datamodule=data, verbose=False)
    return Transcripts(
        {name: gathered(rows) for name, rows in loop.predictions.items()},
        {name: [*data.skips[name], *over_ranks(skipped)] for name, skipped in loop.skipped.items()},
    )


def transcribe_manifests(
    module: ASRModule,
    manifests: dict[str, Manifest],
    *,
    run: RunOptions,
    options: TranscribeOptions = TEXT_ONLY,
    long_form: LongForm | None = None,
    on_predictions: PredictionsCallback = ignore_predictions,
    earlier: Sequence[Notice] = (),
    console: Console | None,
    tables: bool = True,
) -> Transcripts:
    """Transcribe manifests: short recordings in batches, long ones several at once.

    Predictions have the order of their manifest. Findings in the audio are printed on standard error at the end.

    Args:
        module: The model.
        manifests: Manifests by name.
        run: How the model is run.
        options: What is returned besides text.
        long_form: Settings for recordings that are too long for one pass; None skips these recordings.
        on_predictions: Called after each batch and each long recording.
        earlier: Findings in recordings that an interrupted run transcribed. They are printed with the others.
        console: Shows progress; None shows nothing.
        tables: Also show the numbers of kept and dropped utterances.

    Raises:
        ManifestError, AudioError: See `ASRDataModule.select`.
    """
    if long_form is not None:
        check_detection(module, long_form)
    limit = math.inf if long_form is None else module.longest_pass_s(long_form.chunk_s)
    done = Transcripts({name: [] for name in manifests}, {name: [] for name in manifests})
    short = {name: one.select(np.flatnonzero(one.durations_N <= limit).tolist()) for name, one in manifests.items()}
    short = {name: one for name, one in short.items() if len(one)}
    noticed = dict.fromkeys(earlier)
    if short:
        encoder, shown = module.speech_encoder, console if tables else None
        data = inference_data(
            short, tokenizer=module.tokenizer, limits=module.limits(), encoder=encoder, run=run, console=shown
        )
        done.batching = data.batching()
        trainer = make_inference_trainer(accelerator=run.accelerator, console=console)
        done.add(transcribe_splits(trainer, module, data, options, on_predictions, long_form or NO_VAD))
        noticed |= data.notices
    if long_form is not None:
        long_run = LongRun(module, run, options, long_form, console)
        for name, result, found in long_run(manifests, limit):
            if isinstance(result, Skip):
                done.skips[name].append(result)
            else:
                done.predictions[name].append(result)
                on_predictions([result], found)
        noticed |= long_run.notices
    print_notices(noticed)
    done.notices = list(noticed)
    done.sort(manifests)
    return done


def inference_data(
    manifests: dict[str, Manifest],
    *,
    tokenizer: Tokenizer | None,
    limits: Limits,
    encoder: SpeechEncoder,
    run: RunOptions,
    console: Console | None,
) -> ASRDataModule:
    """A data module with every manifest as a test split, filtered. The encoder says what its batches cost."""
    budget_s = encoder.budget_s(run.max_batch_s)
    config = DataConfig(
        train={},
        dev=None,
        test={},
        max_batch_s=budget_s,
        max_batch_size=None,
        eval_batch_s=budget_s,
        min_s=0.0,
        max_s=None,
        split_segments=False,
        mix_by="corpus",
        mix_weights=None,
        mix_temperature=1.0,
        concatenate_s=None,
        speed_factors=[],
        tempo_factors=[],
        num_workers=run.num_workers,
        downmix=run.downmix,
        check_audio=True,
        on_bad_audio=run.on_bad_audio,
        max_skip_fraction=run.max_skip_fraction,
        allow_duplicate_ids=True,
        max_leakage=1.0,
    )
    data = ASRDataModule(
        config=config,
        manifests=manifests,
        tokenizer=tokenizer,
        limits=limits,
        cost=encoder,
        seed=0,
        console=console,
        prefix="",
    )
    data.select()
    return data
