"""ggml: the written file in whisper.cpp gives the texts of the module."""

import struct
from math import prod

import numpy as np
import pytest
import torch

from ssl_asr.errors import ConfigError
from ssl_asr.export.ggml import FILE_NAME, Ggml, quantized
from ssl_asr.models.spectrograms import slaney_filters
from tests.export.models import noise, pretrained_whisper, speech, texts_of

gguf = pytest.importorskip("gguf", reason="the extra ggml is not installed")
pytest.importorskip("pywhispercpp", reason="the extra ggml is not installed")


def write(model, folder, quantization):
    Ggml().write(model, folder, quantization=quantization)
    return folder


def read_file(path):
    """Sizes, filters, tokens and weights of a file, with blocks back in float32."""
    with path.open("rb") as file:

        def numbers(count):
            return struct.unpack(f"<{count}i", file.read(4 * count))

        assert file.read(4) == b"lmgg"
        sizes = numbers(11)
        bands, bins = numbers(2)
        filters = np.frombuffer(file.read(4 * bands * bins), np.float32).reshape(bands, bins)
        tokens = [file.read(numbers(1)[0]) for _ in range(numbers(1)[0])]
        weights = {}
        while head := file.read(12):
            dimensions, length, kind = struct.unpack("<3i", head)
            shape = numbers(dimensions)[::-1]
            name = file.read(length).decode()
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
            data = np.frombuffer(file.read(prod(shape) // block * size), np.uint8).reshape(*shape[:-1], -1)
            values = gguf.quants.dequantize(data.copy(), gguf.GGMLQuantizationType(kind))
            weights[name] = torch.from_numpy(values.astype(np.float32)).view(shape)
    return sizes, filters, tokens, weights


@pytest.fixture(scope="module")
def f16(english_whisper, tmp_path_factory):
    return write(english_whisper, tmp_path_factory.mktemp("f16"), "f16")


def test_the_file_holds_sizes_filters_tokens_and_every_weight(english_whisper, f16):
    sizes, filters, tokens, weights = read_file(f16 / FILE_NAME)
    assert sizes == (51864, 1500, 64, 2, 2, 448, 64, 2, 2, 80, 1)
    torch.testing.assert_close(torch.tensor(filters), slaney_filters(80, n_fft=400).T)
    assert len(tokens) == 50256
    assert tokens[256] == b" aaaa"
    assert {bytes([byte]) for byte in range(256)} == set(tokens[:256])
    wanted = english_whisper.net.state_dict()
    pairs = {
        "encoder.conv1.weight": "model.encoder.conv1.weight",
        "encoder.positional_embedding": "model.encoder.embed_positions.weight",
        "encoder.blocks.1.attn.key.weight": "model.encoder.layers.1.self_attn.k_proj.weight",
        "encoder.blocks.0.mlp_ln.bias": "model.encoder.layers.0.final_layer_norm.bias",
        "encoder.ln_post.weight": "model.encoder.layer_norm.weight",
        "decoder.token_embedding.weight": "model.decoder.embed_tokens.weight",
        "decoder.blocks.0.cross_attn.value.bias": "model.decoder.layers.0.encoder_attn.v_proj.bias",
        "decoder.blocks.1.cross_attn_ln.weight": "model.decoder.layers.1.encoder_attn_layer_norm.weight",
        "decoder.blocks.1.mlp.2.weight": "model.decoder.layers.1.fc2.weight",
        "decoder.ln.bias": "model.decoder.layer_norm.bias",
    }
    for name, key in pairs.items():
        torch.testing.assert_close(weights[name], wanted[key], rtol=2**-10, atol=1e-6)
    assert len(weights) == len(wanted) - 1, "without the output layer"
    assert weights["encoder.conv1.bias"].shape == (64, 1)


@pytest.mark.parametrize("real_length", [False, True])
def test_texts_are_those_of_the_module(english_whisper, f16, real_length):
    waveforms = noise(960, 40000)
    written = list(Ggml().runtime(f16, english_whisper).transcribe(waveforms, real_length=real_length))
    wanted = texts_of(english_whisper.module, waveforms, "real" if real_length else "30s")
    assert all(len(text.split()) > 3 for text in wanted)
    # whisper.cpp keeps keys and values in float16, so random weights agree for some tokens only.
    assert [text.split()[:3] for text in written] == [text.split()[:3] for text in wanted]


@pytest.mark.parametrize("quantization", ["q8_0", "q5_1", "q5_0"])
def test_weights_are_rounded_to_their_type(english_whisper, f16, quantization, tmp_path):
    path = write(english_whisper, tmp_path, quantization) / FILE_NAME
    assert path.stat().st_size < 0.8 * (f16 / FILE_NAME).stat().st_size
    sizes, _, _, rounded = read_file(path)
    assert sizes[-1] == {"q8_0": 2007, "q5_1": 2009, "q5_0": 2008}[quantization]
    exact = read_file(f16 / FILE_NAME)[3]
    steps = {"f16": 2**-10, "q8_0": 1 / 127, "q5_1": 1 / 15, "q5_0": 1 / 8}
    for name, values in exact.items():
        step = steps[quantization] if values.ndim == 2 and values.shape[1] > 1 else steps["f16"]
        assert (rounded[name] - values).abs().max() <= step * values.abs().max(), name
    for name in ("encoder.positional_embedding", "encoder.blocks.0.attn.query.bias", "encoder.conv1.bias"):
        assert torch.equal(rounded[name], exact[name])
    assert list(Ggml().runtime(tmp_path, english_whisper).transcribe(noise(8000), real_length=True))[0]


def test_blocks_have_the_layout_of_ggml():
    """q8_0: a float16 scale, the largest magnitude over 127, and 32 int8."""
    values = torch.linspace(-2, 1, 32).numpy()[None]
    [block] = quantized(values, "q8_0")
    assert len(block) == 34
    scale = np.frombuffer(block[:2].tobytes(), np.float16)[0]
    assert scale == np.float16(2 / 127)
    np.testing.assert_array_equal(block[2:].view(np.int8), np.round(values[0] * (127 / 2)))


def test_other_vocabularies_and_tasks_are_refused(toy_whisper, toy_ctc, english_whisper, monkeypatch):
    assert Ggml().refusal(english_whisper) is None
    assert "feed-forward layers of four times the width only" in str(Ggml().refusal(toy_whisper))
    monkeypatch.setattr(english_whisper.net.config, "vocab_size", 51870)
    assert "a vocabulary of 51870. whisper.cpp has 51864, 51865, 51866" in str(Ggml().refusal(english_whisper))
    assert "this model is of task ctc. Use to=onnx." in str(Ggml().refusal(toy_ctc))


def test_rows_that_do_not_divide_into_blocks_are_refused(toy_whisper, tmp_path):
    with pytest.raises(ConfigError, match=r"blocks have 32 weights, and the model's width is 16.*quantization=f16"):
        Ggml().write(toy_whisper, tmp_path, quantization="q8_0")
    assert not list(tmp_path.iterdir())


def test_usage_names_the_file_and_the_tail(english_whisper):
    usage = Ggml().usage("out/an4", english_whisper)
    assert "-m out/an4/ggml-model.bin" in usage
    assert "np.pad(audio, (0, 16000))" in usage


@pytest.mark.slow
def test_real_speech_gives_nearly_the_texts_of_the_module(whisper_tiny_en, data_root, tmp_path):
    model = pretrained_whisper(whisper_tiny_en)
    write(model, tmp_path, "f16")
    waveforms = speech(data_root / "en_librispeech_mini" / "test.jsonl", 6)
    written = list(Ggml().runtime(tmp_path, model).transcribe(waveforms, real_length=False))
    wanted = texts_of(model.module, waveforms, "30s")
    assert sum(one == other for one, other in zip(written, wanted, strict=True)) >= 5
