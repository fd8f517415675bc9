"""``ssl-asr evaluate``: score any run, checkpoint or pretrained Whisper on manifests."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssl_asr.errors import ConfigError

if TYPE_CHECKING:
    from ssl_asr.metrics.report import Prediction
    from ssl_asr.types import Skip


def evaluate(config: dict[str, Any], folder: Path) -> float | None:
    """Score as the resolved config says; returns the first manifest's WER under the first normaliser."""
    from ssl_asr.build.assembly import InferenceOptions, load_model
    from ssl_asr.console import hush, make_console
    from ssl_asr.data.manifest import read_manifest
    from ssl_asr.data.text import get_normalizers
    from ssl_asr.inference.batches import recognise
    from ssl_asr.inference.long_recordings import LongForm
    from ssl_asr.metrics.evaluation import Detail, report, with_reference
    from ssl_asr.metrics.report import read_predictions

    hush()
    folder = Path(config["output_dir"])
    console = make_console() if config["verbose"] else None
    if (config["predictions"] is None) == (config["model"] is None):
        raise ConfigError("model", "give either model=… or predictions=…", "a model also needs manifest=…")
    predictions: dict[str, list[Prediction]]
    skips: dict[str, list[Skip]] = {}
    if config["predictions"] is not None:
        path = Path(config["predictions"])
        if not path.is_file():
            raise ConfigError("predictions", f"no such file: {path}")
        predictions = {path.stem: read_predictions(path)}
    else:
        if not config["manifest"]:
            raise ConfigError("manifest", "is missing", "give manifest=PATH")
        manifests = {name: read_manifest(path, only=config["only"]) for name, path in config["manifest"].items()}
        asked = ("window", "tail_s", "language", "whisper_task", "max_tokens_per_s", "decoder", "detect_language")
        options = InferenceOptions(**{key: config[key] for key in asked})
        module = load_model(config["model"], options, console.print if console else (lambda _: None))
        keys = ("max_batch_s", "num_workers", "on_bad_audio", "max_skip_fraction", "accelerator", "precision")
        parts = LongForm(**{key: config[key] for key in ("chunk_s", "stride_s", "vad")}, batch_s=config["max_batch_s"])
        own = {key: config[key] for key in keys}
        predictions, skips = recognise(module, manifests, console=console, long_form=parts, **own)
        predictions = {name: with_reference(rows, config["reference"]) for name, rows in predictions.items()}
    results = report(
        predictions,
        skips,
        normalizers=get_normalizers(config["normalizers"]),
        folder=folder,
        console=console,
        samples=config["samples"],
        detail=Detail(
            **{key: config[key] for key in ("by", "confusions", "worst")},
            translation=config["whisper_task"] == "translate",
        ),
    )
    return next(iter(results.values())).wer
