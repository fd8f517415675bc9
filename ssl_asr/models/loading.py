"""From a backbone's config to a model with weights, and from a checkpoint's description to an empty twin."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssl_asr.errors import CheckpointError, ConfigError
from ssl_asr.models.checkpoints import language_adapter, read_json, resolve_checkpoint
from ssl_asr.models.ssl import SSLBackbone, SSLEncoder, new_ssl_net
from ssl_asr.models.w2v_bert import W2vBertEncoder
from ssl_asr.models.whisper import (
    WhisperBackbone,
    WhisperEncoder,
    WhisperSeq2Seq,
    new_whisper_parts,
)

Say = Callable[[str], None]

# By the model type of transformers' config.
_SSL_ENCODERS: dict[str, type[SSLEncoder]] = {
    "wav2vec2": SSLEncoder,
    "hubert": SSLEncoder,
    "wavlm": SSLEncoder,
    "data2vec-audio": SSLEncoder,
    "unispeech-sat": SSLEncoder,
    "wav2vec2-bert": W2vBertEncoder,
}
SSL_MODEL_TYPES = tuple(_SSL_ENCODERS)


def backbone_folder(backbone: SSLBackbone | WhisperBackbone, say: Say) -> Path:
    """The local folder of a backbone's checkpoint, its family checked.

    Raises:
        CheckpointError: it cannot be had.
        ConfigError: the checkpoint is of a family this backbone option does not run.
    """
    folder = resolve_checkpoint(backbone.source, revision=backbone.revision, say=say)
    found = read_json(folder / "config.json").get("model_type")
    expected = ("whisper",) if isinstance(backbone, WhisperBackbone) else SSL_MODEL_TYPES
    if found not in expected:
        what = f"'{backbone.source}' is a {found} model, this backbone option runs {' '.join(expected)}"
        raise ConfigError("backbone.source", what, "choose the backbone option of its family")
    return folder


def model_family(folder: Path) -> str:
    """``whisper`` or ``ssl``, by the checkpoint's config.

    Raises:
        CheckpointError: a family that is not supported.
    """
    found = read_json(folder / "config.json").get("model_type")
    if found == "whisper":
        return "whisper"
    if found in SSL_MODEL_TYPES:
        return "ssl"
    supported = ", ".join(("whisper", *SSL_MODEL_TYPES))
    raise CheckpointError(str(folder), f"is a {found} model", f"supported are {supported}")


def load_pretrained(auto_class: Any, folder: Path, new_parts: tuple[str, ...], overrides: dict[str, Any]) -> nn.Module:
    """Transformers' model in float32, refusing a checkpoint that lacks any weight of it.

    ``new_parts`` name parts that pretraining may not have had; ``overrides`` go over the
    checkpoint's config.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model, info = auto_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **overrides)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(str(folder), f"cannot be loaded: {error}") from None
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()
    missing = sorted(key for key in info["missing_keys"] if not set(new_parts) & set(key.split(".")))
    if missing or info["mismatched_keys"]:
        shown = ", ".join([*missing, *map(str, info["mismatched_keys"])][:5])
        raise CheckpointError(str(folder), f"lacks weights or has others: {shown}", "is the file whole?")
    stray = _stray(info["unexpected_keys"], model)
    if stray:
        what = f"has weights its config does not account for: {', '.join(stray[:5])}"
        raise CheckpointError(str(folder), what, "do config.json and the weights belong together?")
    loaded: nn.Module = model
    return loaded


def _stray(unexpected: Iterable[str], model: Any) -> list[str]:
    """Weights that are of the model's own parts and yet not its own; those of pretraining's other parts are fine."""
    parts = {name for name, _ in model.named_children()}
    bare = [key.removeprefix(f"{model.base_model_prefix}.") for key in sorted(unexpected)]
    return [key for key in bare if key.partition(".")[0] in parts]


def _whisper_parts(backbone: WhisperBackbone, folder: Path) -> tuple[WhisperEncoder, Any]:
    """The encoder, and transformers' decoder."""
    from transformers import WhisperForConditionalGeneration

    whole: Any = load_pretrained(WhisperForConditionalGeneration, folder, ("proj_out",), backbone.overrides())
    encoder = WhisperEncoder(net=whole.model.encoder, **_window(backbone))
    encoder.gradient_checkpointing = backbone.gradient_checkpointing
    encoder.drop_layers(backbone.layerdrop or 0.0)
    return encoder, whole.model.decoder


def _window(backbone: WhisperBackbone) -> dict[str, Any]:
    return {"window": backbone.window, "tail_s": backbone.tail_s, "train_tail_s": backbone.train_tail_s}


def load_encoder(backbone: SSLBackbone | WhisperBackbone, folder: Path) -> SSLEncoder | WhisperEncoder:
    """The pretrained encoder of a checkpoint folder, in float32."""
    if isinstance(backbone, WhisperBackbone):
        return _whisper_parts(backbone, folder)[0]
    from transformers import AutoModel

    config = read_json(folder / "config.json")
    if config.get("add_adapter"):
        what = "has convolutions after its encoder that change the number of frames (add_adapter)"
        raise CheckpointError(backbone.source, what, "take a checkpoint without them")
    new = ("masked_spec_embed", *(["adapter_layer"] if backbone.adapter_dim is not None else []))
    _check_adapters(backbone, config)
    net: Any = load_pretrained(AutoModel, folder, new, backbone.overrides())
    if backbone.adapter_language is not None:
        _load_language(net, backbone, folder)
    if backbone.gradient_checkpointing:
        net.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    normalize = backbone.normalize_waveform
    if normalize is None:
        preprocessor = read_json(folder / "preprocessor_config.json")
        normalize = bool(preprocessor.get("do_normalize", True))
    encoder = _SSL_ENCODERS[config["model_type"]](net=net, normalize=normalize)
    encoder.drop_layers(backbone.layerdrop or 0.0)
    return encoder


def _check_adapters(backbone: SSLBackbone, config: dict[str, Any]) -> None:
    """Whether a checkpoint has, or can be given, the adapters a backbone option speaks of."""
    has, wants = config.get("adapter_attn_dim"), backbone.adapter_dim
    if wants is not None and not (config["model_type"] == "wav2vec2" and config.get("do_stable_layer_norm")):
        what = "only wav2vec 2.0 models with layer norm first (MMS, XLS-R, large-lv60) have room for adapters"
        raise ConfigError("backbone.adapter_dim", what, "freeze_policy=lora goes with any")
    if wants is not None and has is not None and wants != has:
        raise ConfigError("backbone.adapter_dim", f"is {wants}, the checkpoint's are of {has}", "leave it null")
    if backbone.adapter_language is not None and has is None:
        what = "this checkpoint has no languages to choose from"
        raise ConfigError("backbone.adapter_language", what, "backbone=mms_1b_all, or null")


def _load_language(net: nn.Module, backbone: SSLBackbone, folder: Path) -> None:
    """Put a language's adapters into every layer."""
    from safetensors.torch import load_file

    assert backbone.adapter_language is not None
    path = language_adapter(backbone.source, folder, backbone.adapter_language, revision=backbone.revision)
    weights = {key.removeprefix("wav2vec2."): value for key, value in load_file(path).items()}
    weights = {key: value for key, value in weights.items() if not key.startswith("lm_head.")}
    own = {key for key in net.state_dict() if "adapter_layer" in key}
    if set(weights) != own:
        odd = sorted(own.symmetric_difference(weights))
        raise CheckpointError(str(path), f"lacks weights or has others: {', '.join(odd[:5])}", "is the file whole?")
    net.load_state_dict(weights, strict=False)


def load_seq2seq(backbone: WhisperBackbone, folder: Path) -> WhisperSeq2Seq:
    """The pretrained encoder-decoder of a checkpoint folder, in float32, its generation settings whole."""
    encoder, decoder = _whisper_parts(backbone, folder)
    generation = read_json(folder / "generation_config.json")
    return WhisperSeq2Seq(encoder=encoder, net=decoder, generation=generation)


def rebuild(description: dict[str, Any], *, seq2seq: bool) -> SSLEncoder | WhisperEncoder | WhisperSeq2Seq:
    """A model of that description with random weights, for a checkpoint's to be loaded into."""
    cut_to = description.get("cut_to")
    if description["family"] == "ssl":
        config = description["config"]
        ssl_encoder = _SSL_ENCODERS[config["model_type"]](net=new_ssl_net(config), normalize=description["normalize"])
        if cut_to is not None:
            ssl_encoder.cut(cut_to)
        return ssl_encoder
    encoder_net, decoder_net = new_whisper_parts(description["config"])
    window = {key: description[key] for key in ("window", "tail_s", "train_tail_s")}
    encoder = WhisperEncoder(net=encoder_net, **window)
    if cut_to is not None:
        encoder.cut(cut_to)
    if not seq2seq:
        return encoder
    return WhisperSeq2Seq(encoder=encoder, net=decoder_net, generation=description["generation"])
