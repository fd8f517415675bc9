"""What a run is resumed with: refused if resuming cannot change it, and named if the run is then not exact."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from ssl_asr.console import notify
from ssl_asr.data.manifest import Manifest
from ssl_asr.errors import CheckpointError, ConfigError, raise_all
from ssl_asr.textfiles import shown
from ssl_asr.training.checkpoint_files import KEY
from ssl_asr.training.module import ASRModule

# A resumed run keeps these sections of its config. Its optimizers and schedulers continue from their saved states, so
# that other values would be shown and recorded, and have no effect.
_KEPT = ("optimizers", "schedulers", "seed", "freeze_policy", "backbone", "task", "states", "head")
# Except these: the pretrained model may have moved, and how states are computed does not change them.
_FREE = {"backbone.source", "backbone.revision", "backbone.gradient_checkpointing", "backbone.attention"}
# Other values of these are used from now on, and the run is no longer the one that was started.
_INEXACT = (
    "augment.",
    "audio_augment.",
    *(f"data.{key}" for key in ("split_segments", "mix_by", "mix_weights", "mix_temperature", "concatenate_s")),
    *(f"data.{key}" for key in ("max_batch_s", "max_batch_size", "speed_factors", "tempo_factors", "min_s", "max_s")),
    *(f"data.{key}" for key in ("downmix", "resample")),
    *(f"trainer.{key}" for key in ("accumulate_grad_batches", "gradient_clip_val", "precision", "accelerator")),
    *(f"trainer.{key}" for key in ("limit_train_batches", "ema_decay", "compile")),
)
_DATA, _RANKS = "training utterances", "number of ranks"
# A finished run may be tested on another machine.
_OF_MACHINE = (_RANKS, "trainer.accelerator", "trainer.precision")
# Utterances that are compared by id and text, of all that are compared by length.
_COMPARED = 1000


def data_description(train: Manifest) -> dict[str, Any]:
    """Plain data that tells training data apart: the utterances, and their order, on which batches depend."""
    digest = hashlib.sha256(np.ascontiguousarray(train.durations_N).tobytes())
    for index in np.linspace(0, len(train) - 1, min(len(train), _COMPARED)).astype(np.int64).tolist():
        utterance = train[index]
        told = (utterance.id, utterance.offset, utterance.text, utterance.weight, *utterance.references)
        digest.update(repr(told).encode())
    return {"utterances": len(train), "digest": digest.hexdigest()}


def check_exact(
    checkpoint: dict[str, Any], config: dict[str, Any], *, train: Manifest, ranks: int, first: bool = True
) -> None:
    """Warn if the resumed run will differ from the run that was started, had it not been interrupted.

    Args:
        checkpoint: The checkpoint to resume.
        config: The configuration that runs, as plain data.
        train: The training data.
        ranks: Number of ranks.
        first: Whether this process warns.

    Raises:
        ConfigError, UserErrors: The run is finished, so that no update would be made with the new values. Names each.
    """
    changes = list(_changes(checkpoint[KEY], config, data_description(train), ranks))
    if _is_finished(checkpoint, config["trainer"]):
        rest = "and has made all of its updates"
        remedy = (
            "leave it as it was, train longer with a larger trainer.max_epochs, or start a new run in another run_dir"
        )
        errors = []
        for name, old, new in changes:
            if name not in _OF_MACHINE:
                key, what = "data.train" if name == _DATA else name, f"is {new}, but this run was trained with {old}"
                errors.append(ConfigError(key, f"{what}, {rest}", remedy))
        raise_all(errors)
    elif changes and first:
        what = "; ".join(f"{name} {old} -> {new}" for name, old, new in changes)
        rest = "The rest of the epoch may repeat utterances or leave some out"
        notify(f"resume: is not exact, because this run was started with other values: {what}. {rest}.")


def _is_finished(checkpoint: dict[str, Any], limits: dict[str, Any]) -> bool:
    """Whether nothing is left to train within the limits of epochs and updates."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    return bool(epochs >= limits["max_epochs"] or 0 <= limits["max_steps"] <= checkpoint["global_step"])


def _changes(
    saved: dict[str, Any], config: dict[str, Any], data: dict[str, Any], ranks: int
) -> Iterator[tuple[str, object, object]]:
    """What differs: its name, the old value, the new one."""
    started, now = _flat(saved["config"]), _flat(config)
    for key in sorted({*started, *now}):
        if key.startswith(_INEXACT) and started.get(key) != now.get(key):
            yield key, _shown(started.get(key)), _shown(now.get(key))
    if saved["ranks"] != ranks:
        yield _RANKS, saved["ranks"], ranks
    if saved["data"] != data:
        before, after = saved["data"]["utterances"], data["utterances"]
        yield _DATA, before, f"{after}{', others or in another order' if before == after else ''}"


def check_resumable(checkpoint: dict[str, Any], module: ASRModule) -> None:
    """Refuse to continue a run with another vocabulary or model.

    Raises:
        CheckpointError: Names what differs.
    """
    saved, description = checkpoint[KEY], module.description()
    pairs = {
        **_pairs("tokenizer", saved["tokenizer"], module.tokenizer.state()),
        **_pairs("model", saved["model"], description, but=("config", "generation")),
        # The rest of the family's config may hold paths and versions.
        **_pairs("model.config", _family(saved["model"]), _family(description)),
    }
    if pairs:
        what = "; ".join(f"{name} is {new}, but was {old}" for name, (old, new) in pairs.items())
        what = f"{what}, in the run that made the checkpoint"
        raise CheckpointError("resume", what, "resume with the config of that run, or start a new run")


def _pairs(
    name: str, old: dict[str, Any], new: dict[str, Any], *, but: tuple[str, ...] = ()
) -> dict[str, tuple[str, str]]:
    """The values that differ, old and new, by their keys."""
    keys = sorted({*old, *new} - {*but})
    return {f"{name}.{key}": (shown(old.get(key)), shown(new.get(key))) for key in keys if old.get(key) != new.get(key)}


def check_same_settings(checkpoint: dict[str, Any], config: dict[str, Any]) -> None:
    """Refuse to continue a run with other settings of what trains and how. Its length and its files may change.

    Args:
        checkpoint: The checkpoint to resume.
        config: The configuration that runs, as plain data.

    Raises:
        ConfigError, UserErrors: Names each key that resuming cannot change, with both values.
    """
    started, now = (_flat({key: each.get(key) for key in _KEPT}) for each in (checkpoint[KEY]["config"], config))
    differing = sorted(key for key in {*started, *now} - _FREE if started.get(key) != now.get(key))
    # Another class has other keys, which need not be named too.
    classes = [key.removesuffix("_target_") for key in differing if key.endswith("._target_")]
    remedy = "leave it as it was, or start a new run in another run_dir, without resume"
    errors = []
    for key in differing:
        if key.endswith("._target_") or not key.startswith(tuple(classes)):
            seen = f"is {_shown(now.get(key))}, but this run was started with {_shown(started.get(key))}"
            errors.append(ConfigError(key.removesuffix("._target_"), f"{seen}, which resuming cannot change", remedy))
    raise_all(errors)


def _shown(value: Any) -> str:
    """A value of a config. A class is shown by its name."""
    text = "null" if value is None else str(value)
    return text.rpartition(".")[2] if text.startswith("ssl_asr.") else text


def _flat(node: dict[str, Any], above: str = "") -> dict[str, Any]:
    """The values of nested data by their keys, joined by dots."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= _flat(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return found


def _family(description: dict[str, Any]) -> dict[str, Any]:
    """The family of a described model."""
    return {"model_type": description.get("config", {}).get("model_type")}


def say_if_finished(updates: int, total_updates: int, *, max_steps: int) -> None:
    """Tell the user if nothing is left to train.

    Args:
        updates: Updates of the checkpoint to resume.
        total_updates: Updates of the whole run.
        max_steps: Limit of the updates. -1 is none, so that the epochs limit the run.
    """
    if updates >= total_updates:
        key = "trainer.max_steps" if max_steps == total_updates else "trainer.max_epochs"
        remedy = f"It is only tested again. Use a larger {key} to train longer"
        notify(f"resume: this run has made all of its {total_updates} updates. {remedy}")


def check_length(checkpoint: dict[str, Any], *, max_epochs: int, max_steps: int) -> None:
    """Refuse to continue a run that is already longer than it may be. One that has this length ends as it was.

    Raises:
        ConfigError: Names the limit that the run exceeds.
    """
    remedy = "use a larger number to continue it, or leave out resume"
    if checkpoint["epoch"] >= max_epochs:
        what = f"is {max_epochs}, but the run to resume is in epoch {checkpoint['epoch'] + 1}"
        raise ConfigError("trainer.max_epochs", what, remedy)
    if 0 <= max_steps < checkpoint["global_step"]:
        what = f"is {max_steps}, but the run to resume has made {checkpoint['global_step']} updates"
        raise ConfigError("trainer.max_steps", what, remedy)
