"""CTranslate2: the written files in faster-whisper give the texts of the module."""

import json

import numpy as np
import pytest
import torch

from ssl_asr.export.ctranslate2 import CTranslate2
from ssl_asr.export.whisper import WhisperParts, with_silence
from ssl_asr.export.word_times import compare_times
from ssl_asr.models.ctranslate2 import read_model, whisper_state
from tests.export.models import examples_of, noise, pretrained_whisper, read, speech, texts_of
from tests.toys import END, NO_TIMESTAMPS, START

pytest.importorskip("faster_whisper", reason="the extra ctranslate2 is not installed")
ctranslate2 = pytest.importorskip("ctranslate2", reason="the extra ctranslate2 is not installed")


@pytest.fixture(scope="module")
def folder(toy_whisper, tmp_path_factory):
    folder = tmp_path_factory.mktemp("float32")
    CTranslate2().write(toy_whisper, folder, quantization="float32")
    return folder


def test_the_file_holds_every_weight(toy_whisper, folder):
    wanted = toy_whisper.net.state_dict()
    written = whisper_state(read_model(folder / "model.bin"))
    assert set(written) == set(wanted) - {"proj_out.weight"}
    for key, tensor in written.items():
        torch.testing.assert_close(tensor, wanted[key], rtol=0, atol=0)


def test_settings_and_vocabulary_are_those_of_the_checkpoint(toy_whisper, folder):
    settings, generation = read(folder / "config.json"), toy_whisper.module.model.generation
    assert settings["suppress_ids"] == generation["suppress_tokens"]
    assert settings["suppress_ids_begin"] == generation["begin_suppress_tokens"]
    assert settings["alignment_heads"] == [[1, 0], [1, 1]], "the upper half of the layers"
    vocabulary = read(folder / "vocabulary.json")
    assert len(vocabulary) == toy_whisper.net.config.vocab_size
    assert [vocabulary[i] for i in (END, START, NO_TIMESTAMPS)] == [
        "<|endoftext|>",
        "<|startoftranscript|>",
        "<|notimestamps|>",
    ]
    assert [vocabulary[NO_TIMESTAMPS + i] for i in (1, 2, 1501)] == ["<|0.00|>", "<|0.02|>", "<|30.00|>"]
    assert read(folder / "preprocessor_config.json")["feature_size"] == 80


@pytest.mark.parametrize("multilingual", [False, True])
def test_multilingual_models_keep_the_empty_token_by_which_they_are_known(
    toy_whisper, tmp_path, monkeypatch, multilingual
):
    """Without it, faster-whisper takes a model for an English one and does not detect languages."""
    content = json.loads(WhisperParts.of(toy_whisper).tokenizer_json)
    if multilingual:
        unused = toy_whisper.net.config.vocab_size - 1
        content["added_tokens"].append({"id": unused, "content": ""})
    monkeypatch.setattr(WhisperParts, "tokenizer_json", json.dumps(content))
    CTranslate2().write(toy_whisper, tmp_path, quantization="float32")
    vocabulary = read(tmp_path / "vocabulary.json")
    assert vocabulary.count("") == multilingual
    assert len(set(vocabulary)) == toy_whisper.net.config.vocab_size
    assert ctranslate2.models.Whisper(str(tmp_path), device="cpu").is_multilingual is multilingual


def both(checkpoint, folder):
    """Texts at 30 s and at real length, and states at real length: those of CTranslate2, and those of the module."""
    from faster_whisper import WhisperModel

    model, waveforms, found = pretrained_whisper(checkpoint), noise(700, 16000, 40001), {}
    runtime = CTranslate2().runtime(folder, model)
    for window in ("30s", "real"):
        written = list(runtime.transcribe(waveforms, real_length=window == "real"))
        found[window] = (written, texts_of(model.module, waveforms, window))
    whisper = WhisperModel(str(folder), device="cpu")
    [waveform] = noise(20000)
    states = np.array(whisper.encode(whisper.feature_extractor(with_silence(waveform, 1.0), padding=0)))[0]
    encoder = model.module.speech_encoder
    encoder.set_window("real", 1.0)
    with torch.inference_mode():
        wanted = encoder(waveform[None], torch.tensor([len(waveform)])).h_BFD[0]
    return found | {"states": (states, wanted.numpy())}


@pytest.fixture(scope="module")
def compared(toy_whisper_folder, folder):
    return both(toy_whisper_folder, folder)


@pytest.mark.parametrize("window", ["30s", "real"])
def test_texts_are_those_of_the_module(compared, window):
    written, wanted = compared[window]
    # Random weights never end. The module stops after 448 tokens, faster-whisper after 224.
    assert [text[:40] for text in written] == [text[:40] for text in wanted]
    assert all(wanted)


def test_states_at_real_length_are_those_of_the_module(compared):
    states, wanted = compared["states"]
    assert len(states) == 113, "2.25 s of 50 frames a second, rounded up"
    np.testing.assert_allclose(states, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("quantization", CTranslate2.quantizations)
def test_writing_changes_no_weight(toy_whisper, quantization, tmp_path):
    """The converter computes integers in place, and the model is the reference of the parity check."""
    before = {key: tensor.clone() for key, tensor in toy_whisper.net.state_dict().items()}
    CTranslate2().write(toy_whisper, tmp_path, quantization=quantization)
    for key, tensor in toy_whisper.net.state_dict().items():
        torch.testing.assert_close(tensor, before[key], rtol=0, atol=0)


@pytest.mark.parametrize("quantization", ["float16", "int8"])
def test_quantized_files_are_smaller_and_run(toy_whisper, folder, quantization, tmp_path):
    CTranslate2().write(toy_whisper, tmp_path, quantization=quantization)
    whole, part = ((one / "model.bin").stat().st_size for one in (folder, tmp_path))
    assert part < 0.8 * whole
    assert len(list(CTranslate2().runtime(tmp_path, toy_whisper).transcribe(noise(8000), real_length=True))) == 1


def test_heads_for_word_times_are_those_of_the_checkpoint(toy_whisper, monkeypatch):
    monkeypatch.setitem(toy_whisper.module.model.generation, "alignment_heads", [[0, 1]])
    assert WhisperParts.of(toy_whisper).alignment_heads() == [(0, 1)]


def test_models_with_ctc_are_refused(toy_ctc):
    refusal = CTranslate2().refusal(toy_ctc)
    assert str(refusal).endswith("this model is of task ctc. Use to=onnx.")


def test_usage_names_the_folder_and_the_tail(toy_whisper):
    usage = CTranslate2().usage("out/an4", toy_whisper)
    assert 'WhisperModel("out/an4", ' in usage
    assert f"[{[START, NO_TIMESTAMPS]}]" in usage


@pytest.mark.parametrize("place", [1, 2])
def test_the_usage_runs(toy_whisper, folder, tmp_path, monkeypatch, capsys, place):
    import soundfile

    [waveform] = noise(20000)
    soundfile.write(tmp_path / "speech.wav", waveform.numpy(), 16000)
    monkeypatch.chdir(tmp_path)
    example = CTranslate2().usage(str(folder), toy_whisper).split("```python\n")[place].split("```")[0]
    exec(example, {})
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
@pytest.mark.parametrize("real_length", [False, True])
def test_real_speech_gives_the_texts_of_the_module(whisper_tiny_en, data_root, real_length, tmp_path):
    model = pretrained_whisper(whisper_tiny_en)
    CTranslate2().write(model, tmp_path, quantization="float32")
    waveforms = speech(data_root / "en_librispeech_mini" / "test.jsonl", 12)
    written = list(CTranslate2().runtime(tmp_path, model).transcribe(waveforms, real_length=real_length))
    assert written == texts_of(model.module, waveforms, "real" if real_length else "30s")


@pytest.mark.slow
def test_faster_whisper_gives_word_times(whisper_tiny_en, data_root, tmp_path):
    model = pretrained_whisper(whisper_tiny_en)
    CTranslate2().write(model, tmp_path, quantization="float32")
    waveforms = speech(data_root / "en_librispeech_mini" / "test.jsonl", 2)
    model.module.speech_encoder.set_window("30s", None)
    words = CTranslate2().runtime(tmp_path, model).words(waveforms)
    times = compare_times(model, words, examples_of(waveforms))
    assert len(times.distances) > 10
    assert times.within == len(times.distances)
