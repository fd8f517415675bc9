"""Running a model over test splits and scoring what it hears: shared by train, evaluate and transcribe."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ssl_asr.build.assembly import encoder_limits, make_limits, normalizers
from ssl_asr.data.filters import Limits
from ssl_asr.data.manifest import Manifest
from ssl_asr.data.module import ASRDataModule, DataConfig
from ssl_asr.errors import AudioError, ConfigError, ManifestError
from ssl_asr.inference.long_recordings import LongForm, Told, too_long, transcribe_long
from ssl_asr.metrics.breakdown import by_key, confusions, print_confusions, print_groups, print_worst, worst
from ssl_asr.metrics.report import (
    Normalizer,
    Prediction,
    Score,
    print_samples,
    print_scores,
    score_predictions,
    write_predictions,
)
from ssl_asr.metrics.translation import language_scores, print_languages, print_translation, translation_scores
from ssl_asr.textfiles import written_whole
from ssl_asr.training.memory import keep_freed_memory
from ssl_asr.training.module import ASRModule
from ssl_asr.training.state_cache import Extraction, StateCache
from ssl_asr.training.trainer import make_inference_trainer
from ssl_asr.types import Skip, Tokenizer


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
    tables: bool = True,
    long_form: LongForm | None = None,
    on_long: Callable[[Prediction], None] = lambda _: None,
    callbacks: Sequence[Callback] = (),
) -> tuple[dict[str, list[Prediction]], dict[str, list[Skip]]]:
    """Predictions and skips of each manifest, by name.

    ``long_form`` says how recordings are taken apart that are too long for one pass, which otherwise are skipped;
    ``on_long`` is told of each of those as it is done. ``callbacks`` are Lightning's, of the test loop. ``console``
    shows how far it has come, and, with ``tables``, what was kept and what was dropped.

    Raises:
        ManifestError, AudioError: see `ASRDataModule.select`.
    """
    limit = math.inf if long_form is None else too_long(module, long_form)
    short = {name: one.select(np.flatnonzero(one.durations_N <= limit).tolist()) for name, one in manifests.items()}
    short = {name: one for name, one in short.items() if len(one)}
    predictions: dict[str, list[Prediction]] = {}
    skips: dict[str, list[Skip]] = {}
    if short:
        data = _inference_data(
            short,
            tokenizer=module.tokenizer,
            limits=make_limits(module, None),
            max_batch_s=max_batch_s,
            num_workers=num_workers,
            on_bad_audio=on_bad_audio,
            max_skip_fraction=max_skip_fraction,
            console=console if tables else None,
        )
        trainer = make_inference_trainer(
            accelerator=accelerator, precision=precision, console=console, callbacks=callbacks
        )
        predictions, skips = run_test(trainer, module, data)
    for name, manifest in manifests.items():
        rows, skipped = predictions.setdefault(name, []), skips.setdefault(name, [])
        long = [manifest[i] for i in np.flatnonzero(manifest.durations_N > limit).tolist()]
        if not long or long_form is None:
            continue
        device = _device(accelerator)
        if device.type == "cpu":
            keep_freed_memory()
        module.eval().to(device)
        with _minutes_bar(console) as bar:
            for utterance in long:
                task = bar.add_task(utterance.id, total=utterance.duration / 60)
                try:
                    rows.append(transcribe_long(module, utterance, long_form, _shown(bar, task)))
                except AudioError as error:
                    if on_bad_audio == "error":
                        raise
                    skipped.append(Skip(utterance.id, utterance.where, error.reason, str(error), utterance.duration))
                    continue
                finally:
                    bar.remove_task(task)
                on_long(rows[-1])
    return predictions, skips


def _minutes_bar(console: Console | None) -> Progress:
    """A bar for minutes of a recording, gone when it is done."""
    columns = (
        # A name with brackets in it is no markup.
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.completed:.1f}/{task.total:.1f} min"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=console is None)


def _shown(bar: Progress, task: TaskID) -> Told:
    return lambda seconds: bar.update(task, completed=seconds / 60)


def _device(accelerator: str) -> torch.device:
    """Where Lightning would run it."""
    if accelerator == "cpu":
        return torch.device("cpu")
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def _inference_data(
    manifests: dict[str, Manifest],
    *,
    tokenizer: Tokenizer | None,
    limits: Limits,
    max_batch_s: float,
    num_workers: int,
    on_bad_audio: str,
    max_skip_fraction: float,
    console: Console | None,
) -> ASRDataModule:
    """Every manifest as a test split, filtered."""
    config = DataConfig(
        train=None,
        dev=None,
        test={},
        max_batch_s=max_batch_s,
        max_batch_size=None,
        eval_batch_s=max_batch_s,
        min_s=0.0,
        max_s=None,
        speed_factors=[],
        num_workers=num_workers,
        downmix="mean",
        check_audio=True,
        on_bad_audio=on_bad_audio,
        max_skip_fraction=max_skip_fraction,
        allow_duplicate_ids=True,
    )
    data = ASRDataModule(
        config=config, manifests=manifests, tokenizer=tokenizer, limits=limits, seed=0, console=console
    )
    data.select()
    return data


def extract_states(
    cache: StateCache,
    manifest: Manifest,
    *,
    max_batch_s: float,
    num_workers: int,
    accelerator: str,
    precision: str,
    console: Console | None,
) -> list[Skip]:
    """Put the states of every utterance into the cache's store; those that are there are passed over.

    Returns:
        What could not be encoded.

    Raises:
        CheckpointError: an utterance has other audio than when its states were made.
    """
    data = _inference_data(
        {"input": manifest},
        tokenizer=None,
        limits=encoder_limits(cache.encoder),
        max_batch_s=max_batch_s,
        num_workers=num_workers,
        on_bad_audio="skip",
        max_skip_fraction=1.0,
        console=console,
    )
    selection = data.selections["input"]
    cache.store.check(selection.kept)
    new = [index for index, utterance in enumerate(selection.kept) if utterance.id not in cache.store]
    if console is not None and len(new) < len(selection.kept):
        console.print(f"{len(selection.kept) - len(new)} are there already")
    extraction = Extraction(cache)
    if new:
        selection.kept = selection.kept.select(new)
        trainer = make_inference_trainer(accelerator=accelerator, precision=precision, console=console)
        trainer.test(extraction, datamodule=data, verbose=False)
    if console is not None:
        table = Table(title=f"States of layers {', '.join(map(str, cache.layers))}", title_justify="left")
        for column in ("utterances", "frames of speech", "GB on disk"):
            table.add_column(column, justify="right")
        table.add_row(*(f"{number:,}" for number in cache.store.totals()), f"{cache.store.gigabytes():.3f}")
        console.print(table)
        console.print(f"they are in {cache.store.folder}")
    return [*selection.skips, *extraction.skipped]


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


@dataclass(frozen=True, kw_only=True)
class Detail:
    """What else to say of an evaluation.

    Attributes:
        by: tags of the manifest, ``lang`` or ``length``, to group errors by.
        confusions: how many of the most frequent errors to show.
        worst: how many of the worst utterances.
        translation: whether texts are translations, which BLEU and chrF score.
    """

    by: list[str]
    confusions: int
    worst: int
    translation: bool = False


def report(
    predictions: dict[str, list[Prediction]],
    skips: dict[str, list[Skip]],
    *,
    names: Sequence[str],
    folder: Path,
    console: Console | None,
    samples: int,
    detail: Detail | None = None,
) -> dict[str, Any]:
    """Score predictions, print the tables, and write ``predictions/NAME.jsonl`` and ``results.json``.

    Raises:
        ManifestError: a split has no prediction.
        ConfigError: there is no such tag to group by.
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
        if detail is not None:
            results[split] |= where_errors_are(rows, by_name[names[0]], detail, console)
        if console is not None:
            print_samples(rows, by_name[names[0]], console, samples)
            aside = f"; {len(missed)} not scored: {', '.join(s.id for s in missed[:5])}" if missed else ""
            if detail is None or not detail.translation:
                print_scores(f"{split}{aside}", scores, console)
    with written_whole(folder / "results.json") as file:
        file.write(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if console is not None:
        console.print(f"results and predictions are in {folder}")
    return results


def where_errors_are(
    rows: Sequence[Prediction], normalize: Normalizer, detail: Detail, console: Console | None
) -> dict[str, Any]:
    """Where the errors of a split are, shown and as plain data.

    Raises:
        ConfigError: there is no such tag.
    """
    made: dict[str, Any] = {}
    heard = [(row.lang, row.detected) for row in rows if row.lang is not None and row.detected is not None]
    if heard:
        languages = language_scores([(spoken, str(detected)) for spoken, detected in heard if spoken is not None])
        made["languages"] = [asdict(one) | {"accuracy": one.accuracy} for one in languages]
        if console is not None:
            print_languages(languages, console)
    if detail.translation:
        scores = translation_scores([row.ref for row in rows], [row.hyp for row in rows])
        made["translation"] = [asdict(one) for one in scores]
        if console is not None:
            print_translation(scores, console)
        # What translations should be word for word nobody knows.
        return made
    groups = {key: by_key(rows, key, normalize) for key in detail.by}
    found = confusions(rows, normalize, detail.confusions)
    bad = worst(rows, normalize, detail.worst)
    if console is not None:
        for key, own in groups.items():
            print_groups(key, own, console)
        print_confusions(found, console)
        print_worst(bad, normalize, console)
    by = {key: [asdict(group) | {"wer": group.words.rate} for group in own] for key, own in groups.items()}
    return made | {"by": by, "confusions": [asdict(one) for one in found], "worst": [row.id for row in bad]}


def with_reference(rows: Sequence[Prediction], key: str) -> list[Prediction]:
    """Predictions with another key of the manifest as their reference.

    Raises:
        ConfigError: an utterance lacks it.
    """
    if key == "text":
        return list(rows)
    lacking = [row.id for row in rows if not isinstance(row.tags.get(key), str)]
    if lacking:
        what = f"{len(lacking)} utterances have no '{key}', such as {lacking[0]}"
        raise ConfigError("reference", what, "check the manifest's keys")
    return [replace(row, ref=row.tags[key]) for row in rows]


def score_all(split: str, rows: Sequence[Prediction], by_name: dict[str, Normalizer]) -> list[Score]:
    """A split's scores under each normaliser.

    Raises:
        ManifestError: there is nothing to score.
    """
    if not rows:
        raise ManifestError(split, "no utterance was recognised", "see the table of what was dropped")
    return [score_predictions(rows, name, normalize) for name, normalize in by_name.items()]
