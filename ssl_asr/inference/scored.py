"""The manifests and predictions that ``evaluate`` scores, checked before a model is loaded."""

from collections.abc import Iterable
from pathlib import Path

from ssl_asr.config.console_log import save_console
from ssl_asr.config.schemas import EvaluateConfig
from ssl_asr.data.manifest import Manifest, read_named
from ssl_asr.data.references import all_references, check_references
from ssl_asr.data.text import get_normalizers
from ssl_asr.errors import ConfigError
from ssl_asr.inference.batches import Transcripts
from ssl_asr.metrics.breakdown import Tagged, check_keys
from ssl_asr.metrics.evaluation import reference_texts
from ssl_asr.metrics.report import read_predictions


def scored_manifests(config: EvaluateConfig) -> dict[str, Manifest]:
    """The manifests of an evaluation by name.

    Raises:
        ManifestError, UserErrors: A manifest is invalid, or has no reference with text.
        ConfigError: No utterance has the tags of ``only`` or ``by``, or one lacks the key of ``reference``.
    """
    normalizers = get_normalizers(config.normalizers)
    manifests = {}
    for name, manifest in read_named(config.manifest, only=config.only, root=config.root).items():
        if config.reference != "text":
            _check_key(manifest, config.reference)
        texts = (
            all_references(manifest)
            if config.reference == "text"
            else ((text, one.lang) for one in manifest for text in reference_texts(one.tags[config.reference]))
        )
        check_references(texts, normalizers, where=str(manifest.path))
        _check_by(config, manifest)
        manifests[name] = manifest
    return manifests


def _check_key(manifest: Manifest, key: str) -> None:
    lacking = [utterance for utterance in manifest if not reference_texts(utterance.tags.get(key))]
    if lacking:
        what = f"{len(lacking)} utterances have no text under '{key}', the first at {lacking[0].where}"
        raise ConfigError("reference", what, "check the keys of the manifest")


def _check_by(config: EvaluateConfig, utterances: Iterable[Tagged]) -> None:
    # Translations have no breakdown.
    if config.whisper_task != "translate":
        check_keys(config.by, utterances)


def begin_results(folder: Path, *, overwrite: bool) -> None:
    """Start the results of an evaluation: what it has shown, as ``evaluate.log``.

    Args:
        folder: Folder of the results.
        overwrite: Whether to remove the results of an earlier evaluation, so that those of its other manifests do not
            stay beside new ones.
    """
    log = folder / "evaluate.log"
    earlier = (folder / "results.json", folder / "skipped.jsonl", log, *(folder / "predictions").glob("*.jsonl"))
    for path in earlier if overwrite else ():
        path.unlink(missing_ok=True)
    save_console(log)


def read_scored(config: EvaluateConfig) -> Transcripts:
    """The predictions of an earlier evaluation.

    Raises:
        ConfigError: There is no such file, or no utterance has the tags of ``by``.
        ManifestError: It is invalid, or no reference has text.
    """
    path = Path(str(config.predictions))
    if not path.is_file():
        raise ConfigError("predictions", f"no such file: {path}", "give a predictions.jsonl")
    rows = read_predictions(path)
    check_references(
        ((ref, row.lang) for row in rows for ref in row.refs), get_normalizers(config.normalizers), where=str(path)
    )
    _check_by(config, rows)
    return Transcripts({path.stem: rows})
