"""Reads wav2vec 2.0 and HuBERT checkpoints of fairseq (``.pt``) and SpeechBrain (``wav2vec2.ckpt``).

fairseq files are pickles that hold, besides the weights, objects of fairseq and omegaconf. Nothing of a file is run:
torch reads weights and plain data, and every other class is replaced by an empty stand-in.
"""

import re
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from ssl_asr.errors import CheckpointError

# Prefixes of the encoder's weights, longest first: fine-tuned fairseq models, SpeechBrain's pretraining and lobe.
_PREFIXES = ("w2v_encoder.w2v_model.", "model.wav2vec2.", "model.hubert.", "model.")
# Weights that only pretraining uses, and heads.
_NOT_OF_THE_ENCODER = re.compile(
    r"quantizer|project_q|project_hid|final_proj|label_embs_concat|lm_head|target_glu|input_quantizer"
)
_RENAMED = (
    (r"^mask_emb$", "masked_spec_embed"),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"^feature_extractor\.conv_layers\.(\d+)\.2\.(1\.)?", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"\.self_attn\.", ".attention."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
)
# Both frameworks may have weight norm under its old names.
_WEIGHT_NORM = (
    (r"\.weight_g$", ".parametrizations.weight.original0"),
    (r"\.weight_v$", ".parametrizations.weight.original1"),
)
_UNKNOWN_CLASS = re.compile(r"GLOBAL ([\w.]+)")
_MOST_CLASSES = 200
_STRIDES = (5, 2, 2, 2, 2, 2, 2)
_HEAD_WIDTH = 64


class _StandIn:
    """Takes the place of an object that is not plain data. It ignores what it is given."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __setstate__(self, _: object) -> None:
        pass


def read_plain(path: Path) -> dict[str, Any]:
    """Content of a torch file, with stand-ins for objects of other packages. Nothing of the file is run.

    Raises:
        CheckpointError: The file cannot be read that way.
    """
    unknown: dict[str, Any] = {}
    for _ in range(_MOST_CLASSES):
        known: list[Any] = [(kind, name) for name, kind in unknown.items()]
        try:
            with torch.serialization.safe_globals(known):
                content: Any = torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            found = _UNKNOWN_CLASS.search(str(error))
            if found is None or found[1] in unknown:
                break
            unknown[found[1]] = type("StandIn", (_StandIn,), {})
        except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
            what = f"cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}"
            raise CheckpointError(str(path), what, "get the file again") from None
        else:
            if isinstance(content, dict):
                return content
            break
    raise CheckpointError(str(path), "holds more than weights and plain data", "get it from its first publisher")


def encoder_weights(content: dict[str, Any], where: str) -> dict[str, Tensor]:
    """Weights of the encoder with the names of transformers' ``Wav2Vec2Model``.

    Args:
        content: What `read_plain` returned.
        where: Name of the file, for errors.

    Raises:
        CheckpointError: There are no weights of such an encoder.
    """
    given = content.get("model", content)
    weights = (
        {name: value for name, value in given.items() if isinstance(value, Tensor)} if isinstance(given, dict) else {}
    )
    prefix = next((one for one in _PREFIXES if any(name.startswith(one) for name in weights)), "")
    bare = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    kept = {name: value.float() for name, value in bare.items() if _NOT_OF_THE_ENCODER.match(name) is None}
    is_fairseq = any(name.startswith("post_extract_proj.") for name in kept)
    named = {_renamed(name, [*(_RENAMED if is_fairseq else ()), *_WEIGHT_NORM]): value for name, value in kept.items()}
    if "feature_projection.projection.weight" not in named:
        what = "has no weights of a wav2vec 2.0 or HuBERT encoder"
        raise CheckpointError(where, what, "give a .pt of fairseq, or the wav2vec2.ckpt of SpeechBrain")
    return named


def _renamed(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, new in rules:
        name = re.sub(pattern, new, name)
    return name


def config_of(weights: dict[str, Tensor]) -> dict[str, Any]:
    """Settings of ``Wav2Vec2Config`` by the names and shapes of weights.

    Strides and the width of attention heads (64) have no weights. They are those of the published models, which have
    layer norm first exactly if their convolutions have layer norm.
    """
    convolutions = [
        weights[f"feature_extractor.conv_layers.{i}.conv.weight"] for i in range(_count(weights, "conv_layers"))
    ]
    width = weights["feature_projection.projection.weight"].shape[0]
    positions = weights["encoder.pos_conv_embed.conv.parametrizations.weight.original1"]
    layered = "feature_extractor.conv_layers.1.layer_norm.weight" in weights
    return {
        "conv_dim": [one.shape[0] for one in convolutions],
        "conv_kernel": [one.shape[2] for one in convolutions],
        "conv_stride": list(_STRIDES[: len(convolutions)]),
        "conv_bias": "feature_extractor.conv_layers.0.conv.bias" in weights,
        "num_feat_extract_layers": len(convolutions),
        "hidden_size": width,
        "num_hidden_layers": _count(weights, "encoder.layers"),
        "num_attention_heads": max(1, width // _HEAD_WIDTH),
        "intermediate_size": weights["encoder.layers.0.feed_forward.intermediate_dense.weight"].shape[0],
        "num_conv_pos_embeddings": positions.shape[2],
        "num_conv_pos_embedding_groups": width // positions.shape[1],
        "feat_extract_norm": "layer" if layered else "group",
        "do_stable_layer_norm": layered,
    }


def _count(weights: dict[str, Tensor], stack: str) -> int:
    return 1 + max(int(found[1]) for name in weights if (found := re.search(rf"{re.escape(stack)}\.(\d+)\.", name)))


def convert_foreign(source: Path, folder: Path, *, normalize: bool | None) -> list[str]:
    """Write the encoder of a checkpoint of fairseq or SpeechBrain to a folder that transformers loads.

    Args:
        source: The file.
        folder: An empty folder.
        normalize: Whether the waveform is normalized. None: exactly if the convolutions have layer norm, as in
            fairseq's published models.

    Returns:
        Names of weights that the file lacks and that do not matter without masking.

    Raises:
        CheckpointError: The file cannot be read, or its weights are not those of such an encoder.
    """
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

    from ssl_asr.console import silent

    weights = encoder_weights(read_plain(source), str(source))
    try:
        settings = config_of(weights)
        net: Any = Wav2Vec2Model(Wav2Vec2Config(**settings))
        missing, unexpected = net.load_state_dict(weights, strict=False)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        what = f"has other weights than a wav2vec 2.0 encoder: {' '.join(str(error).split())[:300]}"
        raise CheckpointError(str(source), what) from None
    lacking = [name for name in missing if name != "masked_spec_embed"]
    if lacking or unexpected:
        what = f"has missing or unknown weights: {', '.join([*lacking, *unexpected][:5])}"
        raise CheckpointError(str(source), what, "only wav2vec 2.0 and HuBERT can be imported")
    layered = settings["do_stable_layer_norm"]
    with silent():
        net.save_pretrained(folder)
    do_normalize = layered if normalize is None else normalize
    extractor: Any = Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=layered)
    extractor.save_pretrained(folder)
    return list(missing)
