"""The ``transformers`` format: what transformers loads equals the model, and writes the same text."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file

from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.dataset import collate
from ssl_asr.errors import CheckpointError
from ssl_asr.export.tokenizers import with_timestamps
from ssl_asr.export.transformers import Transformers
from ssl_asr.models.heads import DnnHead
from ssl_asr.models.states import ChosenLayer, LastLayer
from ssl_asr.types import Example, Utterance
from tests.export.toy_models import (
    SENTENCES,
    SYMBOLS,
    ctc_model,
    ctc_module,
    pieces,
    waveforms,
    whisper_model,
)
from tests.toys import SSL_FAMILIES

FORMAT = Transformers()
# Lengths without a frame that transformers pads and masks, and whose label it reads nevertheless (w2v-BERT, Parakeet).
AUDIO = waveforms(0.42, 1.14, 0.7)


def ours(model, audio=AUDIO):
    """What the exported model writes in this package, one utterance at a time."""
    module = model.module
    texts = []
    for i, waveform in enumerate(audio):
        utterance = Utterance(str(i), "", len(waveform) / 16000)
        with torch.inference_mode():
            texts.append(module.transcribe(collate([Example(utterance, waveform, [])]))[0].text)
    return texts


def spaced(texts):
    return [" ".join(text.split()) for text in texts]


@pytest.mark.parametrize("family", SSL_FAMILIES)
def test_a_ctc_model_writes_the_same_text_in_transformers(family, toy_checkpoints, tmp_path):
    model = ctc_model(family, toy_checkpoints)
    assert FORMAT.refusal(model) is None
    FORMAT.write(model, tmp_path, quantization="float32")
    expected = ours(model)
    assert len(set("".join(expected))) > 1, "a model that writes one label shows nothing"
    assert spaced(FORMAT.runtime(tmp_path, model).transcribe(AUDIO, real_length=False)) == expected


def test_weights_and_logits_are_equal(toy_checkpoints, tmp_path):
    module = ctc_module("wav2vec2_layer", toy_checkpoints)
    model = ctc_model("wav2vec2_layer", toy_checkpoints)
    FORMAT.write(model, tmp_path, quantization="float32")
    loaded, info = transformers.AutoModelForCTC.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    own = dict(model.module.encoder.net.named_parameters())
    for name, parameter in loaded.wav2vec2.named_parameters():
        torch.testing.assert_close(parameter, own[name], rtol=0, atol=0)
    processor = transformers.AutoProcessor.from_pretrained(tmp_path)
    assert processor.feature_extractor.do_normalize is module.encoder.normalize is True
    inputs = processor(AUDIO[1].numpy(), sampling_rate=16000, return_tensors="pt")
    out = model.module.encoder(AUDIO[1][None], torch.tensor([len(AUDIO[1])]))
    expected = model.module.head(out.h_BFD, out.frame_lengths_B)
    torch.testing.assert_close(loaded.eval()(**inputs).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokenizer", [SYMBOLS, pieces("bpe"), pieces("unigram")], ids=["symbols", "bpe", "unigram"])
def test_other_labels_are_written_alike(tokenizer, toy_checkpoints, tmp_path):
    model = ctc_model("hubert_group", toy_checkpoints, tokenizer=tokenizer)
    FORMAT.write(model, tmp_path, quantization="float32")
    expected = ours(model)
    assert any(expected)
    assert spaced(FORMAT.runtime(tmp_path, model).transcribe(AUDIO, real_length=False)) == expected


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_pieces_of_a_text_have_the_same_ids(kind, toy_checkpoints, tmp_path):
    tokenizer = pieces(kind)
    FORMAT.write(ctc_model("hubert_group", toy_checkpoints, tokenizer=tokenizer), tmp_path, quantization="float32")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in [*SENTENCES, "a xylophone"]:
        expected = tokenizer.encode(Utterance("", "", 1.0, text=text))
        assert loaded(text, add_special_tokens=False)["input_ids"] == expected
        assert loaded.decode(expected, group_tokens=False).split() == tokenizer.decode(expected).split()


def test_characters_have_the_same_ids(toy_checkpoints, tmp_path):
    alphabet = CharTokenizer(characters=" _⁇aé", normalizer="none")
    FORMAT.write(ctc_model("hubert_group", toy_checkpoints, tokenizer=alphabet), tmp_path, quantization="float32")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert len(loaded) == alphabet.vocab_size
    assert loaded("a _⁇é")["input_ids"] == alphabet.encode(Utterance("", "", 1.0, text="a _⁇é")) == [5, 2, 3, 4, 6]
    assert loaded.decode([5, 5, 0, 5, 2, 3, 6]) == "aa _é"
    barred = ctc_model("hubert_group", toy_checkpoints, tokenizer=CharTokenizer(characters=" |a", normalizer="none"))
    assert "by which transformers writes a space" in str(FORMAT.refusal(barred))


def test_the_pipeline_loads_the_folder(toy_checkpoints, tmp_path):
    model = ctc_model("wavlm_layer", toy_checkpoints)
    FORMAT.write(model, tmp_path, quantization="float32")
    transcribe = transformers.pipeline("automatic-speech-recognition", model=str(tmp_path))
    assert spaced([transcribe(AUDIO[1].numpy())["text"]]) == ours(model)[1:2]


def test_a_whisper_writes_the_same_text_in_transformers(toy_checkpoints, tmp_path):
    model = whisper_model(toy_checkpoints)
    assert (model.window, model.tail_s) == ("30s", 1.0)
    FORMAT.write(model, tmp_path, quantization="float32")
    reference = transformers.WhisperForConditionalGeneration.from_pretrained(toy_checkpoints["whisper"])
    loaded, info = transformers.WhisperForConditionalGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["unexpected_keys"]
    for name, parameter in loaded.named_parameters():
        torch.testing.assert_close(parameter, reference.get_parameter(name), rtol=0, atol=0)
    generation = json.loads((toy_checkpoints["whisper"] / "generation_config.json").read_text())
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert {key: written[key] for key in generation} == generation
    audio = AUDIO[:1]
    assert spaced(FORMAT.runtime(tmp_path, model).transcribe(audio, real_length=False)) == ours(model, audio)


def test_timestamps_that_a_tokenizer_lacks_are_added(toy_checkpoints):
    tokenizer = whisper_model(toy_checkpoints).module.tokenizer
    tokens = {token["content"]: token["id"] for token in with_timestamps(tokenizer)["added_tokens"]}
    assert tokens["<|0.00|>"] == tokenizer.timestamp_begin_id
    assert tokens["<|30.00|>"] == tokenizer.vocab_size - 1


def test_half_precision_halves_the_file(toy_checkpoints, tmp_path):
    model = ctc_model("wav2vec2_group", toy_checkpoints)
    sizes = {}
    for kind in ("float32", "float16"):
        (tmp_path / kind).mkdir()
        FORMAT.write(model, tmp_path / kind, quantization=kind)
        file = tmp_path / kind / "model.safetensors"
        sizes[kind] = sum(tensor.numel() * tensor.element_size() for tensor in load_file(file).values())
    assert sizes["float16"] * 2 == sizes["float32"]
    assert {parameter.dtype for parameter in model.module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"states": LastLayer(stride=2)}, "does not read the last states"),
        ({"states": ChosenLayer(layer=1, stride=1)}, "does not read the last states"),
        (
            {"head": DnnHead(blocks=1, width=8, norm="layer", activation="relu", dropout=0.0)},
            "has a head of several layers",
        ),
    ],
)
def test_heads_that_transformers_lacks_are_refused(parts, message, toy_checkpoints):
    model = ctc_model("wav2vec2_group", toy_checkpoints, **parts)
    assert model.net is None
    refusal = FORMAT.refusal(model)
    assert isinstance(refusal, CheckpointError)
    assert message in str(refusal)
    assert "head=linear" in str(refusal)


def test_ctc_on_whisper_is_refused(toy_checkpoints):
    refusal = FORMAT.refusal(ctc_model("whisper", toy_checkpoints))
    assert "is a Whisper encoder with a CTC layer, and transformers has no class for it" in str(refusal)
    assert "task=seq2seq" in str(refusal)


def test_a_part_of_whisper_is_not_saved_as_a_model(toy_checkpoints, tmp_path):
    module = whisper_model(toy_checkpoints).module
    for net, part in ((module.model.net, "decoder"), (module.speech_encoder.net, "encoder")):
        with pytest.raises(CheckpointError, match=f"would write Whisper's {part} alone.*ssl-asr export"):
            net.save_pretrained(tmp_path / "part")
        with pytest.raises(CheckpointError, match="alone"):
            net.push_to_hub("someone/part")
    assert not (tmp_path / "part").exists()
