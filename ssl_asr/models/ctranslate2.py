"""Reads a Whisper model in CTranslate2's binary format and writes it in transformers' layout.

Format of ``model.bin`` (CTranslate2 versions 4 to 6)::

    version   name and revision of the spec
    variables name, shape, type and bytes of each
    aliases   name and target of each

CTranslate2 stacks projections. The converter splits them::

    self_attention/linear_0   query, key, value        attention/linear_0   query
    self_attention/linear_1   output                   attention/linear_1   key, value
                                                       attention/linear_2   output
"""

import json
import shutil
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from ssl_asr.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import WhisperConfig

_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
# Vocabulary size of the smallest multilingual model. English-only models have one token less.
_MULTILINGUAL_VOCABULARY = 51_865


def _number(file: BinaryIO, layout: str) -> int:
    return int(struct.unpack(layout, file.read(struct.calcsize(layout)))[0])


def _string(file: BinaryIO) -> str:
    return file.read(_number(file, "<H")).rstrip(b"\0").decode()


def read_model(path: Path) -> dict[str, Tensor]:
    """Reads every variable of a ``model.bin`` and resolves aliases.

    Raises:
        CheckpointError: The file has another format, or its weights have an unknown type.
    """
    variables: dict[str, Tensor] = {}
    try:
        with path.open("rb") as file:
            _number(file, "<I")
            name = _string(file)
            _number(file, "<I")
            if name != "WhisperSpec":
                raise CheckpointError(str(path), f"contains a {name!r}, expected a WhisperSpec")
            for _ in range(_number(file, "<I")):
                key = _string(file)
                shape = [_number(file, "<I") for _ in range(_number(file, "<B"))]
                kind = _TYPES[_number(file, "<B")]
                data = np.frombuffer(file.read(_number(file, "<I")), dtype=kind)
                variables[key] = torch.from_numpy(data.reshape(shape).copy())
            for _ in range(_number(file, "<I")):
                alias = _string(file)
                variables[alias] = variables[_string(file)]
    except (struct.error, KeyError, ValueError, UnicodeDecodeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(str(path), f"is not a CTranslate2 model: {error}") from None
    return variables


def _pair(variables: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {name: variables[f"{key}/{name}"].float() for name in ("weight", "bias") if f"{key}/{name}" in variables}


def _norm(variables: dict[str, Tensor], key: str) -> dict[str, Tensor]:
    return {"weight": variables[f"{key}/gamma"].float(), "bias": variables[f"{key}/beta"].float()}


def _split(pair: dict[str, Tensor], names: list[str]) -> dict[str, dict[str, Tensor]]:
    """Splits a stacked projection. Whisper's key projection has no bias, so its bias of zeros is dropped."""
    parts: dict[str, dict[str, Tensor]] = {name: {} for name in names}
    for field, stacked in pair.items():
        for name, part in zip(names, stacked.chunk(len(names)), strict=True):
            if not (name == "k_proj" and field == "bias"):
                parts[name][field] = part.contiguous()
    return parts


def _layer(variables: dict[str, Tensor], key: str, *, cross: bool) -> dict[str, Any]:
    own = f"{key}/self_attention"
    layer: dict[str, Any] = {
        "self_attn_layer_norm": _norm(variables, f"{own}/layer_norm"),
        "self_attn": {
            **_split(_pair(variables, f"{own}/linear_0"), ["q_proj", "k_proj", "v_proj"]),
            "out_proj": _pair(variables, f"{own}/linear_1"),
        },
        "final_layer_norm": _norm(variables, f"{key}/ffn/layer_norm"),
        "fc1": _pair(variables, f"{key}/ffn/linear_0"),
        "fc2": _pair(variables, f"{key}/ffn/linear_1"),
    }
    if cross:
        other = f"{key}/attention"
        layer["encoder_attn_layer_norm"] = _norm(variables, f"{other}/layer_norm")
        layer["encoder_attn"] = {
            "q_proj": _pair(variables, f"{other}/linear_0"),
            **_split(_pair(variables, f"{other}/linear_1"), ["k_proj", "v_proj"]),
            "out_proj": _pair(variables, f"{other}/linear_2"),
        }
    return layer


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Tensor]:
    flat: dict[str, Tensor] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _count_layers(variables: dict[str, Tensor], side: str) -> int:
    return 1 + max(
        int(key.split("/")[1][6:])
        for key in variables
        if key.startswith(f"{side}/layer_") and "norm" not in key.split("/")[1]
    )


def whisper_state(variables: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of transformers' ``WhisperForConditionalGeneration`` in float32, without the tied output layer."""
    encoder_layers, decoder_layers = (_count_layers(variables, side) for side in ("encoder", "decoder"))
    encoder = {
        "conv1": _pair(variables, "encoder/conv1"),
        "conv2": _pair(variables, "encoder/conv2"),
        "embed_positions": {"weight": variables["encoder/position_encodings/encodings"].float()},
        "layers": {str(i): _layer(variables, f"encoder/layer_{i}", cross=False) for i in range(encoder_layers)},
        "layer_norm": _norm(variables, "encoder/layer_norm"),
    }
    decoder = {
        "embed_tokens": {"weight": variables["decoder/embeddings/weight"].float()},
        "embed_positions": {"weight": variables["decoder/position_encodings/encodings"].float()},
        "layers": {str(i): _layer(variables, f"decoder/layer_{i}", cross=True) for i in range(decoder_layers)},
        "layer_norm": _norm(variables, "decoder/layer_norm"),
    }
    return _flatten({"model": {"encoder": encoder, "decoder": decoder}})


def convert_whisper(source: Path, target: Path) -> None:
    """Converts a CTranslate2 model to a transformers checkpoint.

    Weights become float32. The generation settings contain the suppression lists and the alignment heads of the
    source, and the language ids if the model is multilingual.

    Args:
        source: Path, folder with model.bin, config.json and tokenizer.json.
        target: Path, folder to create.
    """
    from transformers import GenerationConfig

    variables = read_model(source / "model.bin")
    state = whisper_state(variables)
    tokens = _special_tokens(source / "tokenizer.json")
    config = _whisper_config(variables, state, tokens)
    target.mkdir(parents=True)
    save_file(state, target / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(target)
    shutil.copy(source / "tokenizer.json", target / "tokenizer.json")
    settings = json.loads((source / "config.json").read_text(encoding="utf-8"))
    generation = generation_settings(settings, tokens, multilingual=config.vocab_size >= _MULTILINGUAL_VOCABULARY)
    # Not derived from the model config: such a GenerationConfig loses its language ids when it is loaded.
    GenerationConfig(**generation).save_pretrained(target)


def _special_tokens(path: Path) -> dict[str, int]:
    """Id of each added token of a tokenizer.json."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    return {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


def _whisper_config(variables: dict[str, Tensor], state: dict[str, Tensor], tokens: dict[str, int]) -> "WhisperConfig":
    """The model config, derived from the shapes of the weights."""
    from transformers import WhisperConfig

    vocab, width = state["model.decoder.embed_tokens.weight"].shape
    end, start = tokens["<|endoftext|>"], tokens["<|startoftranscript|>"]
    heads = int(variables["encoder/num_heads"]) if "encoder/num_heads" in variables else width // 64
    layers = [
        1 + max(int(k.split(".")[3]) for k in state if k.startswith(f"model.{side}.layers"))
        for side in ("encoder", "decoder")
    ]
    return WhisperConfig(
        vocab_size=vocab,
        d_model=width,
        num_mel_bins=state["model.encoder.conv1.weight"].shape[1],
        encoder_layers=layers[0],
        decoder_layers=layers[1],
        encoder_attention_heads=heads,
        decoder_attention_heads=heads,
        encoder_ffn_dim=state["model.encoder.layers.0.fc1.weight"].shape[0],
        decoder_ffn_dim=state["model.decoder.layers.0.fc1.weight"].shape[0],
        decoder_start_token_id=start,
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        architectures=["WhisperForConditionalGeneration"],
    )


def generation_settings(settings: dict[str, Any], tokens: dict[str, int], *, multilingual: bool) -> dict[str, Any]:
    """Settings of a Whisper ``GenerationConfig``.

    Args:
        settings: dict, content of CTranslate2's config.json.
        tokens: dict, id of each special token.
        multilingual: bool, True if the model has language tokens.
    """
    end, start = tokens["<|endoftext|>"], tokens["<|startoftranscript|>"]
    generation: dict[str, Any] = {
        "bos_token_id": end,
        "eos_token_id": end,
        "pad_token_id": end,
        "decoder_start_token_id": start,
        "max_length": 448,
        "suppress_tokens": settings["suppress_ids"],
        "begin_suppress_tokens": settings["suppress_ids_begin"],
        "alignment_heads": settings["alignment_heads"],
        "no_timestamps_token_id": tokens["<|notimestamps|>"],
        "prev_sot_token_id": tokens["<|startofprev|>"],
        "is_multilingual": multilingual,
        "return_timestamps": False,
        "max_initial_timestamp_index": 50,
    }
    if multilingual:
        languages = range(start + 1, tokens["<|translate|>"])
        generation["lang_to_id"] = {text: i for text, i in tokens.items() if i in languages}
        generation["task_to_id"] = {name: tokens[f"<|{name}|>"] for name in ("transcribe", "translate")}
    return generation
