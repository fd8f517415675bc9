"""Whisper as two ONNX graphs, with the names and metadata that sherpa-onnx reads.

    encoder  mel (N, bands, T) -> n_layer_cross_k, n_layer_cross_v (layers, N, T / 2, features)
    decoder  tokens (N, U), in_n_layer_self_k_cache, in_n_layer_self_v_cache (layers, N, 448, features),
             n_layer_cross_k, n_layer_cross_v, offset (1,)
             -> logits (N, U, vocabulary), out_n_layer_self_k_cache, out_n_layer_self_v_cache

The encoder takes up to 30 s. The names are those of sherpa-onnx's own export of OpenAI's models.

Two things that other runtimes do are in the graphs. The encoder reads frames of zeros, which sherpa-onnx appends, as
silence. The decoder suppresses the tokens that the checkpoint lists.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ssl_asr.export.whisper import WhisperParts

ENCODER_OUTPUTS = ("n_layer_cross_k", "n_layer_cross_v")
DECODER_INPUTS = ("tokens", "in_n_layer_self_k_cache", "in_n_layer_self_v_cache", *ENCODER_OUTPUTS, "offset")
DECODER_OUTPUTS = ("logits", "out_n_layer_self_k_cache", "out_n_layer_self_v_cache")
# Dimensions of any size.
AXES = {
    "mel": {0: "n_audio", 2: "T"},
    "tokens": {0: "n_audio", 1: "n_tokens"},
    "logits": {0: "n_audio", 1: "n_tokens"},
    **{name: {1: "n_audio", 2: "T"} for name in ENCODER_OUTPUTS},
    **{name: {1: "n_audio"} for name in (*DECODER_INPUTS[1:3], *DECODER_OUTPUTS[1:])},
}
# A finite number, so that a sum of two stays finite.
_NEVER = -1e9
# Log-mel of silence below the loudest frame: Whisper cuts log10 of the power at 8 below its maximum, and divides by 4.
_FLOOR = 2.0


def _attend(attention: Any, x_BUD: Tensor, k_BFD: Tensor, v_BFD: Tensor, mask: Tensor | None) -> Tensor:
    """Attention by matrix products, which ONNX has operators for. ``mask`` is True where a key is visible."""
    heads = attention.num_heads

    def split(x_BND: Tensor) -> Tensor:
        return x_BND.reshape(x_BND.shape[0], x_BND.shape[1], heads, -1).transpose(1, 2)

    q, k, v = split(attention.q_proj(x_BUD)), split(k_BFD), split(v_BFD)
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, _NEVER)
    out: Tensor = attention.out_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    return out


def _feed(layer: Any, x_BUD: Tensor) -> Tensor:
    y_BUD = functional.gelu(layer.fc1(layer.final_layer_norm(x_BUD)))
    out: Tensor = x_BUD + layer.fc2(y_BUD)
    return out


class EncoderGraph(nn.Module):
    """From log-mel to the keys and values of the decoder's cross-attention."""

    def __init__(self, parts: WhisperParts) -> None:
        super().__init__()
        self.encoder, self.decoder = parts.net.model.encoder, parts.net.model.decoder

    def forward(self, mel_BMF: Tensor) -> tuple[Tensor, Tensor]:
        """Computes ``n_layer_cross_k`` and ``n_layer_cross_v``."""
        appended_B1F = mel_BMF.abs().amax(1, keepdim=True) == 0
        silence_B11 = mel_BMF.amax((1, 2), keepdim=True) - _FLOOR
        x = functional.gelu(self.encoder.conv1(torch.where(appended_B1F, silence_B11, mel_BMF)))
        h_BFD = functional.gelu(self.encoder.conv2(x)).transpose(1, 2)
        h_BFD = h_BFD + self.encoder.embed_positions.weight[: h_BFD.shape[1]]
        for layer in self.encoder.layers:
            x_BFD, own = layer.self_attn_layer_norm(h_BFD), layer.self_attn
            h_BFD = _feed(layer, h_BFD + _attend(own, x_BFD, own.k_proj(x_BFD), own.v_proj(x_BFD), None))
        h_BFD = self.encoder.layer_norm(h_BFD)
        cross = [layer.encoder_attn for layer in self.decoder.layers]
        keys, values = ([project(h_BFD) for project in projects] for projects in _projections(cross))
        return torch.stack(keys), torch.stack(values)


def _projections(attentions: list[Any]) -> tuple[list[Any], list[Any]]:
    return [one.k_proj for one in attentions], [one.v_proj for one in attentions]


class DecoderGraph(nn.Module):
    """From tokens and caches to the logits of the next tokens, with suppressed tokens at -1e9."""

    always_V: Tensor
    first_V: Tensor

    def __init__(self, parts: WhisperParts) -> None:
        super().__init__()
        self.decoder = parts.net.model.decoder
        for name, ids in zip(("always_V", "first_V"), parts.suppressed(), strict=True):
            bias_V = torch.zeros(parts.net.config.vocab_size)
            bias_V[ids] = _NEVER
            self.register_buffer(name, bias_V, persistent=False)

    def forward(
        self, tokens_BU: Tensor, self_k: Tensor, self_v: Tensor, cross_k: Tensor, cross_v: Tensor, offset: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the logits and both caches, with the tokens written at ``offset``."""
        start = offset[0]
        end = start + tokens_BU.shape[1]
        places = torch.arange(self.decoder.embed_positions.weight.shape[0])
        mask = places[:end][None] <= places[start:end][:, None]
        x_BUD = self.decoder.embed_tokens(tokens_BU) + self.decoder.embed_positions.weight[start:end]
        caches: tuple[list[Tensor], list[Tensor]] = ([], [])
        for i, layer in enumerate(self.decoder.layers):
            y_BUD, own = layer.self_attn_layer_norm(x_BUD), layer.self_attn
            seen = []
            for cache, kept, project in zip((self_k, self_v), caches, (own.k_proj, own.v_proj), strict=True):
                seen.append(torch.cat([cache[i][:, :start], project(y_BUD)], dim=1))
                kept.append(torch.cat([seen[-1], cache[i][:, end:]], dim=1))
            x_BUD = x_BUD + _attend(own, y_BUD, seen[0], seen[1], mask)
            y_BUD = layer.encoder_attn_layer_norm(x_BUD)
            x_BUD = _feed(layer, x_BUD + _attend(layer.encoder_attn, y_BUD, cross_k[i], cross_v[i], None))
        # The embedding is the left factor, so that the file has it once, not also transposed.
        logits = (self.decoder.embed_tokens.weight @ self.decoder.layer_norm(x_BUD).transpose(1, 2)).transpose(1, 2)
        begins = (start == 0).to(logits.dtype)
        return logits + self.always_V + begins * self.first_V, torch.stack(caches[0]), torch.stack(caches[1])


def example_inputs(parts: WhisperParts) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Inputs of both graphs, for tracing."""
    config = parts.net.config
    layers, width = config.decoder_layers, config.d_model
    cache = torch.zeros(layers, 1, config.max_target_positions, width)
    cross = torch.zeros(layers, 1, 100, width)
    tokens_BU = torch.tensor([parts.prompt("en")])
    # Not 0, so that tracing keeps the slices before the offset.
    return torch.zeros(1, parts.n_mels, 200), (tokens_BU, cache, cache, cross, cross, torch.tensor([2]))


def metadata(parts: WhisperParts) -> dict[str, object]:
    """Metadata of the encoder, in the words of sherpa-onnx."""
    config, tokenizer = parts.net.config, parts.tokenizer
    ids = {text: i for i, text in enumerate(parts.tokens())}
    languages = tokenizer.languages
    return {
        "model_type": "whisper",
        "version": "1",
        "maintainer": "ssl_asr",
        "n_mels": config.num_mel_bins,
        "n_audio_ctx": config.max_source_positions,
        "n_audio_state": config.d_model,
        "n_audio_head": config.encoder_attention_heads,
        "n_audio_layer": config.encoder_layers,
        "n_vocab": config.vocab_size,
        "n_text_ctx": config.max_target_positions,
        "n_text_state": config.d_model,
        "n_text_head": config.decoder_attention_heads,
        "n_text_layer": config.decoder_layers,
        # The last token, which switches timestamps off, is appended by sherpa-onnx.
        "sot_sequence": _joined(parts.prompt("en")[:-1]),
        "all_language_tokens": _joined(languages.values()),
        "all_language_codes": ",".join(languages),
        "sot": tokenizer.start_id,
        "sot_index": 0,
        "eot": tokenizer.end_id,
        "blank_id": ids["Ġ"],
        "is_multilingual": int(tokenizer.is_multilingual),
        "no_speech": tokenizer.no_speech_id,
        "non_speech_tokens": _joined(parts.suppressed()[0]),
        "transcribe": ids["<|transcribe|>"],
        "translate": ids["<|translate|>"],
        "sot_prev": ids["<|startofprev|>"],
        "sot_lm": ids["<|startoflm|>"],
        "no_timestamps": tokenizer.no_timestamps_id,
    }


def _joined(ids: Any) -> str:
    return ",".join(map(str, ids))
