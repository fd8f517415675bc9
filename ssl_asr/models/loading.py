"""Shared steps of loading models: pretrained weights from a folder, and untrained twins from a description.

The families load themselves (see `ssl_asr.models.encoder.Backbone`). This module does not know them.
"""

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from ssl_asr.console import silent
from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.models.checkpoints import Say, read_json, resolve_checkpoint
from ssl_asr.models.encoder import Backbone, SpeechEncoder
from ssl_asr.types import BLANK_ID

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SAFETENSORS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
_MOST_CHARACTERS = 500
_HALF = frozenset({"float16", "bfloat16"})


class PretrainedClass(Protocol):
    """A model class of transformers, such as ``AutoModel``."""

    def from_pretrained(self, folder: Path, /, **options: Any) -> Any:
        """Loads the model of a folder."""


def model_type(folder: Path) -> str | None:
    """The ``model_type`` in the config.json of a checkpoint folder. None if there is none."""
    return read_json(folder / "config.json").get("model_type")


def backbone_folder(backbone: Backbone, say: Say) -> Path:
    """Finds or downloads the checkpoint of a backbone option.

    Args:
        backbone: The backbone option.
        say: Callable, called with progress messages.

    Returns:
        A local folder in transformers' layout.

    Raises:
        CheckpointError: The checkpoint cannot be found.
        ConfigError: The checkpoint is of another family than the backbone option.
    """
    folder = resolve_checkpoint(backbone.source, revision=backbone.revision, say=say)
    found = model_type(folder)
    if found not in backbone.model_types:
        what = f"'{backbone.source}' is a {found} model, this backbone option runs {', '.join(backbone.model_types)}"
        raise ConfigError("backbone.source", what, "choose the backbone option of the same family")
    _say_precision(folder, say)
    return folder


def backbone_class_for(folder: Path, candidates: Iterable[type[Backbone]]) -> type[Backbone]:
    """The backbone option that can load a checkpoint folder.

    Args:
        folder: Path, folder in transformers' layout.
        candidates: The backbone classes to choose from. The first class that supports the model wins.

    Raises:
        CheckpointError: No candidate supports the model.
    """
    found = model_type(folder)
    known = list(candidates)
    for candidate in known:
        if found in candidate.model_types:
            return candidate
    supported = ", ".join(sorted({name for candidate in known for name in candidate.model_types}))
    what = f"model_type is {found}, supported are {supported}"
    raise CheckpointError(str(folder / "config.json"), what, "choose another checkpoint, or add a backbone option")


def load_pretrained(
    auto_class: PretrainedClass, folder: Path, new_parts: tuple[str, ...], overrides: dict[str, Any]
) -> nn.Module:
    """Loads a transformers model in float32 and checks that every weight comes from the checkpoint.

    Args:
        auto_class: Class of the model.
        folder: Path, checkpoint folder.
        new_parts: Names of modules that may start from random weights.
        overrides: dict, settings that replace the settings of the checkpoint's config.

    Raises:
        CheckpointError: The checkpoint cannot be read, or its weights do not match its config.
    """
    model, info = _from_pretrained(auto_class, folder, overrides)
    missing = sorted(key for key in info["missing_keys"] if not set(new_parts) & set(key.split(".")))
    if missing or info["mismatched_keys"]:
        shown = ", ".join([*missing, *map(str, info["mismatched_keys"])][:5])
        what = f"has missing or mismatched weights: {shown}"
        raise CheckpointError(str(folder), what, "check that the file is complete")
    stray = _stray(info["unexpected_keys"], model)
    if stray:
        what = f"has weights that its config does not describe: {', '.join(stray[:5])}"
        raise CheckpointError(str(folder), what, "check that config.json and the weights belong together")
    loaded: nn.Module = model
    return loaded


def _say_precision(folder: Path, say: Say) -> None:
    """Say so if the weights of a checkpoint are stored in half precision. All models are loaded in float32."""
    half = sorted(_stored_types(folder) & _HALF)
    if half:
        say(f"{folder}: the weights are stored as {' and '.join(half)}, and are loaded as float32")


def _stored_types(folder: Path) -> set[str]:
    """Types of the weights, by the headers of safetensors files, and else by config.json."""
    found: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        if not path.name.startswith("adapter."):
            found |= _types_in(path)
    config = read_json(folder / "config.json")
    return found or {str(config.get("dtype") or config.get("torch_dtype"))}


def _types_in(path: Path) -> set[str]:
    """Types of the weights in a safetensors file. Empty if it is damaged, which is an error when it is loaded."""
    try:
        with safe_open(path, "pt") as file:
            return {_SAFETENSORS.get(file.get_slice(name).get_dtype(), "") for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return set()


def _from_pretrained(
    auto_class: PretrainedClass, folder: Path, overrides: dict[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """The model, and transformers' report on missing and unexpected weights. transformers prints nothing."""
    try:
        with silent():
            model, info = auto_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **overrides)
    except (OSError, ValueError, RuntimeError, EOFError, SafetensorError, UnpicklingError) as error:
        raise _not_loaded(folder, error) from None
    return model, info


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights of a safetensors file.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise _not_loaded(path, error) from None


def _not_loaded(path: Path, error: Exception) -> CheckpointError:
    """The error for weights that cannot be loaded, with what a library says on one line."""
    said = " ".join(str(error).split())[:_MOST_CHARACTERS]
    return CheckpointError(str(path), f"cannot be loaded: {said}", "get the checkpoint again if the file is damaged")


def _stray(unexpected: Iterable[str], model: Any) -> list[str]:
    """Unexpected weights inside the model's own modules. Weights of pretraining heads are not stray."""
    parts = {name for name, _ in model.named_children()}
    bare = [key.removeprefix(f"{model.base_model_prefix}.") for key in sorted(unexpected)]
    return [key for key in bare if key.partition(".")[0] in parts]


def new_net(config: dict[str, Any]) -> nn.Module:
    """A transformers model with random weights, in float32.

    Args:
        config: dict, settings of the model, as ``config.to_dict()`` returns them.
    """
    from transformers import AutoConfig, AutoModel

    settings = dict(config)
    net: nn.Module = AutoModel.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
    return net.to(torch.float32)


def ctc_model(net: nn.Module, head: nn.Linear) -> "PreTrainedModel":
    """The ``…ForCTC`` model of transformers that shares the weights of an encoder of transformers.

    Args:
        net: The encoder, such as ``Wav2Vec2Model``.
        head: Output layer, with the blank in row 0.
    """
    from transformers import AutoModelForCTC

    config: Any = copy.deepcopy(net.config)
    config.vocab_size, config.pad_token_id = head.out_features, BLANK_ID
    with torch.device("meta"):
        model: Any = AutoModelForCTC.from_config(config)
    layer = nn.Linear(head.in_features, head.out_features)
    layer.weight, layer.bias = head.weight, head.bias
    setattr(model, model.base_model_prefix, net)
    model.lm_head = layer
    whole: PreTrainedModel = model.eval()
    return whole


def refuse_to_save(net: nn.Module, part: str) -> None:
    """Make ``net.save_pretrained`` and ``push_to_hub`` errors: they would write a part in the name of the whole model.

    Args:
        net: Model of transformers.
        part: What would be written.
    """

    def save_pretrained(*_: object, **__: object) -> None:
        remedy = "write the whole model with ssl-asr export model=… to=transformers output_dir=…"
        raise CheckpointError("save_pretrained", f"would write {part} alone, which no program can use", remedy)

    untyped: Any = net
    untyped.save_pretrained = untyped.push_to_hub = save_pretrained


def non_null(options: object, names: Iterable[str]) -> dict[str, Any]:
    """The named attributes of an option that are not None."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def rebuild(description: dict[str, Any], load_class: Callable[[str], type]) -> SpeechEncoder:
    """Builds an encoder with random weights from a description, to load the weights of a checkpoint into.

    Args:
        description: dict, the value of `SpeechEncoder.description`.
        load_class: Callable, maps an import path to a class. It decides which packages are trusted.

    Raises:
        CheckpointError: The description names a class that is not a speech encoder.
    """
    path = str(description["encoder"])
    found = load_class(path)
    if not issubclass(found, SpeechEncoder):
        raise CheckpointError(path, "is not a SpeechEncoder, so the checkpoint cannot be restored")
    return found.from_description(description)
