"""ONNX: CTC models in onnxruntime, and Whisper in sherpa-onnx, give the results of the module."""

import base64

import numpy as np
import pytest
import torch

from ssl_asr.export.base import ExportModel
from ssl_asr.export.onnx import Onnx
from ssl_asr.models.whisper import LogMel
from tests.export.models import batch_of, noise, pretrained_whisper, speech, texts_of
from tests.export.toy_models import ctc_module
from tests.training.toy_runs import build, toy_overrides

pytest.importorskip("onnx", reason="the extra onnx is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
pytest.importorskip("sherpa_onnx", reason="the extra onnx is not installed")


def written(model, folder, quantization="float32"):
    Onnx().write(model, folder, quantization=quantization)
    return folder


@pytest.fixture(scope="module")
def whisper(english_whisper, tmp_path_factory):
    return written(english_whisper, tmp_path_factory.mktemp("whisper"))


# CTC -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def session_of(tmp_path):
    """Loads the graph of a CTC model in onnxruntime."""

    def load(module):
        model = ExportModel(module=module.requires_grad_(False), net=None, window=None, tail_s=None)
        assert Onnx().refusal(model) is None
        return onnxruntime.InferenceSession(written(model, tmp_path) / "model.onnx")

    return load


# Alone and in padded batches, shorter and longer than the traced example.
LENGTHS = ([9000], [36001], [8000, 5000, 700], [34000, 8000])


def assert_log_probs_are_equal(session, module, *lengths):
    batch = batch_of(noise(*lengths))
    inputs = {"waveforms": batch.waveform_BT.numpy(), "waveform_lengths": batch.lengths_B.numpy()}
    log_probs, frames = session.run(None, inputs)
    with torch.inference_mode():
        wanted, wanted_frames = module.log_probs(batch)
    assert frames.tolist() == wanted_frames.tolist()
    for row, count in enumerate(frames):
        np.testing.assert_allclose(log_probs[row, :count], wanted[row, :count].numpy(), atol=2e-3)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("wav2vec2_layer", []),
        ("wav2vec2_group", ["head=dnn", "states.stride=2"]),
        ("wavlm_layer", ["states=weighted_sum"]),
        ("hubert_layer", ["head=bilstm", "head.width=8", "head.layers=1"]),
        ("data2vec", []),
        ("whisper", ["backbone.window=30s"]),
        ("whisper", ["backbone.window=real", "backbone.tail_s=0.3", "states=weighted_sum"]),
    ],
)
def test_log_probs_are_those_of_the_module(toy_checkpoints, toy_corpus, session_of, family, options, tmp_path):
    module = build(tmp_path / "run", *toy_overrides(toy_checkpoints[family], toy_corpus), *options).module.eval()
    session = session_of(module)
    for lengths in LENGTHS:
        assert_log_probs_are_equal(session, module, *lengths)


@pytest.mark.parametrize("family", ["w2v_bert", "parakeet"])
def test_spectrograms_are_in_the_graph(toy_checkpoints, session_of, family):
    module = ctc_module(family, toy_checkpoints)
    session = session_of(module)
    for lengths in LENGTHS:
        assert_log_probs_are_equal(session, module, *lengths)


@pytest.mark.parametrize("window", ["30s", "real"])
def test_whisper_with_ctc_takes_up_to_30_seconds(toy_checkpoints, session_of, window):
    module = ctc_module("whisper", toy_checkpoints)
    module.speech_encoder.set_window(window, 1.0)
    session = session_of(module)
    for lengths in ([475_000, 20_000], [479_900]):
        assert_log_probs_are_equal(session, module, *lengths)
    longer = {"waveforms": np.zeros((1, 480_320), np.float32), "waveform_lengths": np.array([480_320])}
    with pytest.raises(Exception, match="1500 by 1501"):
        session.run(None, longer)


@pytest.mark.parametrize("quantization", ["float32", "int8"])
def test_ctc_texts_and_labels_are_those_of_the_module(toy_ctc, quantization, tmp_path, caplog):
    written(toy_ctc, tmp_path, quantization)
    assert not caplog.records
    waveforms = noise(8000, 30000)
    texts = list(Onnx().runtime(tmp_path, toy_ctc).transcribe(waveforms, real_length=True))
    if quantization == "float32":
        assert texts == texts_of(toy_ctc.module, waveforms)
    lines = (tmp_path / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "<blk> 0"
    assert "\u2581" in {line.split(" ")[0] for line in lines}
    assert len(lines) == toy_ctc.module.tokenizer.vocab_size


def test_the_usage_of_ctc_runs(toy_ctc, tmp_path, monkeypatch, capsys):
    import soundfile

    written(toy_ctc, tmp_path)
    [waveform] = noise(20000)
    soundfile.write(tmp_path / "speech.wav", waveform.numpy(), 16000, subtype="FLOAT")
    monkeypatch.chdir(tmp_path)
    exec(Onnx().usage(str(tmp_path), toy_ctc).split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.replace("<unk>", "⁇").split() == texts_of(toy_ctc.module, [waveform])[0].split()


# Whisper -------------------------------------------------------------------------------------------------------


def test_both_graphs_compute_what_the_module_computes(english_whisper, whisper):
    encoder, decoder = (onnxruntime.InferenceSession(whisper / f"{name}.onnx") for name in ("encoder", "decoder"))
    model = english_whisper.module.model
    states = torch.randn(2, 80, 260)
    cross = encoder.run(None, {"mel": states.numpy()})
    assert [each.shape for each in cross] == [(2, 2, 130, 64)] * 2
    tokens = torch.tensor([[50257, 50362, 300, 301, 302]] * 2)
    caches = [np.zeros((2, 2, 448, 64), np.float32)] * 2
    found = []
    for start, end in ((0, 2), (2, 3), (3, 5)):
        names = [each.name for each in decoder.get_inputs()]
        inputs = [tokens[:, start:end].numpy(), *caches, *cross, np.array([start])]
        logits, *caches = decoder.run(None, dict(zip(names, inputs, strict=True)))
        found.append(logits)
    k = [torch.from_numpy(cross[0][i]) for i in range(2)]
    v = [torch.from_numpy(cross[1][i]) for i in range(2)]
    wanted = _logits(model, tokens, k, v)
    always, first = (list(model.generation[name]) for name in ("suppress_tokens", "begin_suppress_tokens"))
    wanted[..., always] -= 1e9
    wanted[:, :2, first] -= 1e9
    torch.testing.assert_close(torch.from_numpy(np.concatenate(found, 1)), wanted, rtol=1e-4, atol=1e-3)


def test_frames_of_zeros_are_silence(whisper):
    encoder = onnxruntime.InferenceSession(whisper / "encoder.onnx")
    waveform_T = torch.nn.functional.pad(noise(16000)[0], (0, 16000))
    silent_BMF = LogMel(n_mels=80)(waveform_T[None], 200)
    zeros_BMF = silent_BMF.clone()
    zeros_BMF[:, :, 104:] = 0
    wanted, found = (encoder.run(None, {"mel": each.numpy()}) for each in (silent_BMF, zeros_BMF))
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def _logits(model, tokens_BU, keys, values):
    """The module's decoder with these keys and values of the cross-attention."""
    from ssl_asr.models.transformer import attend, feed_forward, keys_values

    x_BUD = model._embed(tokens_BU, 0)
    for layer, k, v in zip(model.net.layers, keys, values, strict=True):
        y_BUD = layer.self_attn_layer_norm(x_BUD)
        x_BUD = x_BUD + attend(layer.self_attn, y_BUD, *keys_values(layer.self_attn, y_BUD), None, causal=True)
        split = [each.unflatten(2, (2, -1)).transpose(1, 2) for each in (k, v)]
        y_BUD = layer.encoder_attn_layer_norm(x_BUD)
        x_BUD = feed_forward(layer, x_BUD + attend(layer.encoder_attn, y_BUD, *split, None, causal=False))
    return model.logits(model.net.layer_norm(x_BUD))


def test_tokens_and_metadata_are_those_of_the_checkpoint(whisper):
    lines = (whisper / "tokens.txt").read_text().splitlines()
    assert len(lines) == 50256
    assert lines[256] == f"{base64.b64encode(b' aaaa').decode()} 256"
    facts = onnxruntime.InferenceSession(whisper / "encoder.onnx").get_modelmeta().custom_metadata_map
    wanted = {"sot": "50257", "eot": "50256", "sot_sequence": "50257", "no_timestamps": "50362", "n_mels": "80"}
    assert {key: facts[key] for key in wanted} == wanted
    assert facts["is_multilingual"] == "0"


@pytest.mark.parametrize("real_length", [False, True])
def test_sherpa_runs_the_files(english_whisper, whisper, real_length):
    """Texts are compared on real speech: random weights magnify the frame of zeros that sherpa-onnx appends."""
    texts = list(Onnx().runtime(whisper, english_whisper).transcribe(noise(960, 40000), real_length=real_length))
    assert all(text.isascii() and text for text in texts)


def test_int8_is_smaller_and_runs(english_whisper, whisper, tmp_path):
    written(english_whisper, tmp_path, "int8")
    assert (tmp_path / "encoder.onnx").stat().st_size < 0.8 * (whisper / "encoder.onnx").stat().st_size
    assert list(Onnx().runtime(tmp_path, english_whisper).transcribe(noise(16000), real_length=True))[0]


def test_the_usage_of_whisper_runs(english_whisper, whisper, tmp_path, monkeypatch, capsys):
    import soundfile

    soundfile.write(tmp_path / "speech.wav", noise(20000)[0].numpy(), 16000)
    monkeypatch.chdir(tmp_path)
    exec(Onnx().usage(str(whisper), english_whisper).split("```python\n")[1].split("```")[0], {})
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
def test_real_speech_gives_nearly_the_texts_of_the_module(whisper_tiny_en, data_root, tmp_path):
    model = pretrained_whisper(whisper_tiny_en)
    written(model, tmp_path)
    waveforms = speech(data_root / "en_librispeech_mini" / "test.jsonl", 6)
    texts = list(Onnx().runtime(tmp_path, model).transcribe(waveforms, real_length=False))
    wanted = texts_of(model.module, waveforms, "30s")
    assert sum(one == other for one, other in zip(texts, wanted, strict=True)) >= 5
