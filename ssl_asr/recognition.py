"""Running a model over test splits and scoring what it hears: shared by train, evaluate and transcribe."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console

from ssl_asr.build import make_limits, normalizers
from ssl_asr.data.manifest import Manifest
from ssl_asr.data.module import ASRDataModule, DataConfig
from ssl_asr.errors import ManifestError
from ssl_asr.metrics.report import (
    Normalizer,
    Prediction,
    Score,
    print_samples,
    print_scores,
    score_predictions,
    write_predictions,
)
from ssl_asr.training.module import ASRModule
from ssl_asr.training.trainer import make_inference_trainer
from ssl_asr.types import Skip


def recognise(
    module: ASRModule,
    manifests: dict[str, Manifest],
    *,
    max_batch_s: float,
    num_workers: int,
    on_bad_audio: str,
    max_skip_fraction: float,
    accelerator: str,
    precision: str,
    console: Console | None,
) -> tuple[dict[str, list[Prediction]], dict[str, list[Skip]]]:
    """Predictions and skips of each manifest, by name.

    Raises:
        ManifestError, AudioError: see `ASRDataModule.select`.
    """
    config = DataConfig(
        train=None,
        dev=None,
        test={},
        max_batch_s=max_batch_s,
        max_batch_size=None,
        eval_batch_s=max_batch_s,
        min_s=0.0,
        max_s=None,
        num_workers=num_workers,
        downmix="mean",
        check_audio=True,
        on_bad_audio=on_bad_audio,
        max_skip_fraction=max_skip_fraction,
        allow_duplicate_ids=True,
    )
    data = ASRDataModule(
        config=config,
        manifests=manifests,
        tokenizer=module.tokenizer,
        limits=make_limits(module, None),
        seed=0,
        console=console,
    )
    data.select()
    trainer = make_inference_trainer(accelerator=accelerator, precision=precision, verbose=console is not None)
    return run_test(trainer, module, data)


def run_test(
    trainer: L.Trainer, module: ASRModule, data: ASRDataModule
) -> tuple[dict[str, list[Prediction]], dict[str, list[Skip]]]:
    """Predictions of every test split of a data module, and what was skipped before and during."""
    module.test_names = data.test_names
    for name in data.test_names:
        module.predictions.pop(name, None)
        module.skipped_audio.pop(name, None)
    trainer.test(module, datamodule=data, verbose=False)
    predictions = {name: module.gathered_predictions(name) for name in data.test_names}
    skips = {name: [*data.skips[name], *module.skipped_audio.get(name, [])] for name in data.test_names}
    return predictions, skips


def report(
    predictions: dict[str, list[Prediction]],
    skips: dict[str, list[Skip]],
    *,
    names: Sequence[str],
    folder: Path,
    console: Console | None,
    samples: int,
) -> dict[str, Any]:
    """Score predictions, print the tables, and write ``predictions/NAME.jsonl`` and ``results.json``.

    Raises:
        ManifestError: a split has no prediction.
    """
    by_name = normalizers(list(names))
    results: dict[str, Any] = {}
    for split, rows in predictions.items():
        scores = score_all(split, rows, by_name)
        write_predictions(folder / "predictions" / f"{split}.jsonl", rows)
        missed = skips.get(split, [])
        results[split] = {
            "scores": {score.normalizer: score.as_dict() for score in scores},
            "skipped": [asdict(skip) for skip in missed],
        }
        if console is not None:
            print_samples(rows, by_name[names[0]], console, samples)
            aside = f"; {len(missed)} not scored: {', '.join(s.id for s in missed[:5])}" if missed else ""
            print_scores(f"{split}{aside}", scores, console)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if console is not None:
        console.print(f"results and predictions are in {folder}")
    return results


def score_all(split: str, rows: Sequence[Prediction], by_name: dict[str, Normalizer]) -> list[Score]:
    """A split's scores under each normaliser.

    Raises:
        ManifestError: there is nothing to score.
    """
    if not rows:
        raise ManifestError(split, "no utterance was recognised", "see the table of what was dropped")
    return [score_predictions(rows, name, normalize) for name, normalize in by_name.items()]
