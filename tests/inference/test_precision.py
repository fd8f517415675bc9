"""Weights in 16 bits: states and log-probabilities near those of float32 for every family, head and search."""

import json

import pytest
import torch
from torch import nn

import ssl_asr
from ssl_asr.config.schemas import ExtractConfig, TranscribeConfig
from ssl_asr.config.serving import ServeConfig
from ssl_asr.inference.model import InferenceOptions, load_encoder
from ssl_asr.inference.options import inference_options
from ssl_asr.inference.precision import weights_dtype
from ssl_asr.metrics.edit import char_edits
from ssl_asr.models.attention import GruAttentionHead, TransformerAttentionHead
from ssl_asr.models.heads import DnnHead
from ssl_asr.models.precision import cast_weights
from tests.toys import FAMILIES
from tests.training.toy_runs import build, toy_overrides

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# Relative error of states. A bfloat16 has 8 bits, a float16 has 11.
ERRORS = {torch.bfloat16: 0.05, torch.float16: 0.01}


def _error(found, expected):
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize(
    ("precision", "device", "native", "dtype"),
    [
        ("auto", CPU, True, torch.float32),
        ("auto", torch.device("mps"), True, torch.float32),
        ("auto", CUDA, True, torch.bfloat16),
        ("auto", CUDA, False, torch.float16),
        ("32-true", CUDA, True, torch.float32),
        ("16-true", CPU, True, torch.float16),
        ("bf16-true", CPU, True, torch.bfloat16),
    ],
)
def test_auto_is_16_bits_on_nvidia_gpus(monkeypatch, precision, device, native, dtype):
    """Older cards emulate bfloat16, which torch reports as supported unless it is asked for native support."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    assert weights_dtype(precision, device) == dtype


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_states_are_near_those_of_float32_and_do_not_depend_on_the_batch(toy_checkpoints, family, dtype):
    folder = str(toy_checkpoints[family])
    lengths_B = torch.tensor([16_000, 9_000, 13_000])
    waveform_BT = torch.randn(3, 16_000, generator=torch.Generator().manual_seed(3)) * 0.1
    for row, length in enumerate(lengths_B.tolist()):
        waveform_BT[row, length:] = 0.0
    exact = load_encoder(folder, InferenceOptions())
    half = load_encoder(folder, InferenceOptions(weights=dtype))
    batch_norms = {part for part in half.modules() if isinstance(part, nn.BatchNorm1d)}
    for part in half.modules():
        expected = torch.float32 if part in batch_norms else dtype
        assert {one.dtype for one in part.parameters(recurse=False)} <= {expected}
    assert {buffer.dtype for buffer in half.buffers() if buffer.is_floating_point()} <= {torch.float32}
    expected, found = exact(waveform_BT, lengths_B), half(waveform_BT, lengths_B)
    assert found.h_BFD.dtype == dtype
    for row, frames in enumerate(expected.frame_lengths_B.tolist()):
        assert _error(found.h_BFD[row, :frames], expected.h_BFD[row, :frames]) < ERRORS[dtype]
        length = lengths_B[row : row + 1]
        alone = half(waveform_BT[row : row + 1, : int(length)], length)
        assert _error(alone.h_BFD[0, :frames], expected.h_BFD[row, :frames]) < ERRORS[dtype]
        assert _error(alone.h_BFD[0, :frames], found.h_BFD[row, :frames].float()) < ERRORS[dtype]


BLOCKS = {"width": 8, "activation": "gelu", "dropout": 0.0}
ATTENTION = BLOCKS | {"blocks": 1, "decoder_dropout": 0.0}
GRU = {"embedding": 4, "decoder_width": 8, "decoder_layers": 1, "attention_width": 4, "channels": 2, "kernel": 2}
TRANSFORMER = {"decoder_layers": 2, "heads": 2, "feed_forward": 16, "max_tokens": 20}
HEADS = {
    "dnn_batch_norm": DnnHead(**BLOCKS, blocks=2, norm="batch"),
    "gru": GruAttentionHead(**ATTENTION, **GRU, norm="layer"),
    "transformer": TransformerAttentionHead(**ATTENTION, **TRANSFORMER, norm="batch"),
}


@pytest.mark.parametrize("dtype", ERRORS)
@pytest.mark.parametrize("name", HEADS)
@torch.inference_mode()
def test_heads_and_their_decoders_are_near_float32(name, dtype):
    h_BFD, lengths_B = torch.randn(2, 9, 6), torch.tensor([9, 6])
    torch.manual_seed(0)
    head = HEADS[name].build(dim=6, vocab_size=7).eval()
    expected_BFV = head(h_BFD, lengths_B)
    steps = [torch.tensor([[0], [0]]), torch.tensor([[3], [2]])]
    decoder = getattr(head, "decoder", None)
    expected = _stepped(decoder, head.trunk(h_BFD, lengths_B), lengths_B, steps) if decoder else []
    cast_weights(head, dtype)
    assert _error(head(h_BFD.to(dtype), lengths_B), expected_BFV) < ERRORS[dtype]
    found = _stepped(decoder, head.trunk(h_BFD.to(dtype), lengths_B), lengths_B, steps) if decoder else []
    for one, other in zip(found, expected, strict=True):
        assert _error(one, other) < ERRORS[dtype]


def _stepped(decoder, h_BFD, lengths_B, steps):
    state = decoder.begin(h_BFD, lengths_B, len(steps))
    return [decoder.step(tokens_B1, state) for tokens_B1 in steps]


@pytest.fixture(scope="module")
def speech(data_root):
    """Five utterances of AN4."""
    folder = data_root / "en_an4"
    rows = [json.loads(line) for line in (folder / "test.jsonl").read_text().splitlines()[:5]]
    return [folder / row["audio_filepath"] for row in rows]


@pytest.mark.parametrize(
    ("decoder", "options"),
    [
        ("whisper_greedy", {"temperatures": [0.0, 0.4], "min_log_prob": -2.0, "no_speech": 0.6}),
        ("whisper_greedy", {"timestamps": True, "max_tokens_per_s": 5.0}),
        ("whisper_beam", {"beam_size": 3, "n_best": 2}),
    ],
)
def test_every_search_of_whisper_writes_nearly_the_texts_of_float32(whisper_tiny_en, speech, decoder, options):
    """Real weights and real speech. Capitals and hyphens of spelled letters are near ties."""
    # Timestamps need the window of pretraining.
    window, tail_s, files = ("30s", None, speech[:1]) if "timestamps" in options else ("real", 2.0, speech)
    given = {"decoder": decoder, "decoder_options": options, "times": "max_prob", "window": window, "tail_s": tail_s}
    given["decoder_options"] = {"max_tokens_per_s": 6.0} | options
    found, expected = (
        ssl_asr.load(whisper_tiny_en, device="cpu", precision=one, **given).transcribe(files, vad=False)
        for one in ("bf16-true", "32-true")
    )
    pairs = [[_letters(one.text) for one in pair] for pair in zip(found, expected, strict=True)]
    distances = [char_edits(*pair) for pair in pairs]
    assert sum(edits.errors for edits in distances) <= 0.2 * sum(edits.ref for edits in distances)
    assert sum(edits.errors == 0 for edits in distances) >= len(files) / 2
    for one, other in zip(found, expected, strict=True):
        assert len(one.alternatives) == len(other.alternatives)
        if one.text == other.text:
            assert one.score == pytest.approx(other.score, abs=0.1)
            starts, times = [word.start for word in one.words], [word.start for word in other.words]
            assert starts == pytest.approx(times, abs=0.1)


def _letters(text):
    return "".join(character for character in text.lower() if character.isalnum())


@pytest.fixture(scope="module")
def joint_run(toy_checkpoints, toy_corpus, tmp_path_factory):
    """A joint model that has hardly been trained: its texts are near ties, and only their scores are compared."""
    folder = tmp_path_factory.mktemp("joint")
    head = ["task=joint", "tokenizer=char", "head=attention_gru", "head.width=8", "head.decoder_width=8"]
    made = build(folder, *toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus), *head)
    made.trainer.fit(made.module, datamodule=made.data)
    return folder


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
@pytest.mark.parametrize("decoder", ["ctc_greedy", "ctc_beam", "attention_greedy", "attention_beam"])
def test_every_search_of_joint_models_runs_in_16_bits(joint_run, toy_corpus, precision, decoder):
    options = {"coverage_weight": 0.1, "beam_size": 3, "max_tokens_per_s": 4.0} if decoder == "attention_beam" else {}
    files = sorted(toy_corpus["dev"].parent.glob("dev*.wav"))
    found, expected = (
        ssl_asr.load(
            joint_run, device="cpu", precision=one, decoder=decoder, decoder_options=options, times="max_prob"
        ).transcribe(files, vad=False)
        for one in (precision, "32-true")
    )
    scores = [one.score for one in found]
    assert scores == pytest.approx([one.score for one in expected], abs=0.05)


def test_commands_give_the_precision_to_the_model():
    given = {"model": "m", "input": ["a.wav"], "accelerator": "cpu"}
    assert inference_options(TranscribeConfig(**given)).weights == torch.float32
    assert inference_options(TranscribeConfig(**given, precision="bf16-true")).weights == torch.bfloat16
    assert inference_options(ServeConfig(model="m", accelerator="cpu", precision="16-true")).weights == torch.float16
    assert ExtractConfig(model="m", input=["a.wav"], output_dir="o").precision == "32-true"
