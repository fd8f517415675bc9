"""Language models and hotwords change what Whisper writes, on real speech."""

from dataclasses import replace

import pytest
import torch

from ssl_asr.build.assembly import InferenceOptions, decoder_node, load_model
from ssl_asr.data.audio import read_waveform
from ssl_asr.data.dataset import collate
from ssl_asr.data.manifest import read_manifest
from ssl_asr.decoding.kneser_ney import estimate
from ssl_asr.decoding.seq2seq import fold
from ssl_asr.errors import ConfigError
from ssl_asr.metrics.edit import word_edits
from ssl_asr.types import Example, Utterance


def _heard(module, examples):
    with torch.inference_mode():
        return [fold(one.text) for one in module.transcribe(collate(examples))]


def test_hotwords_and_a_language_model_of_the_domain_help(whisper_tiny_en, data_root, tmp_path):
    manifest = read_manifest(data_root / "en_librispeech_mini" / "test.jsonl")
    utterances = sorted(manifest, key=lambda utterance: utterance.duration)[10:22]
    examples = [Example(one, read_waveform(one), []) for one in utterances]
    options = InferenceOptions(decoder=decoder_node("whisper_beam", {"beam_size": 4}))
    module = load_model(str(whisper_tiny_en), options, lambda _: None)
    plain = _heard(module, examples)
    assert _heard(module, examples) == plain
    edits = [word_edits(one.text, text).errors for one, text in zip(utterances, plain, strict=True)]
    worst = max(range(len(edits)), key=edits.__getitem__)
    assert edits[worst] > 0, "tiny.en is meant to make a mistake in one of twelve utterances"
    # A model of the very sentences, as strong as can be, brings them nearer.
    model = estimate([one.text.split() for one in utterances], order=3).model
    model.write_arpa(tmp_path / "lm.arpa")
    module.decode_with(replace(module.decoder, lm=str(tmp_path / "lm.arpa"), lm_weight=0.5, unknown_score=-2.0))
    with_lm = [
        word_edits(one.text, text).errors for one, text in zip(utterances, _heard(module, examples), strict=True)
    ]
    assert sum(with_lm) < sum(edits)
    said, heard = utterances[worst].text, plain[worst]
    missed = [word for word in said.split() if word not in heard.split()]
    module.decode_with(replace(module.decoder, lm=None, hotwords=missed, hotword_score=1.0))
    boosted = _heard(module, examples)
    assert sum(word in boosted[worst].split() for word in missed) > 0, (missed, boosted[worst])


def test_a_prompt_is_read_and_not_written_and_lengths_are_kept(whisper_tiny_en, data_root):
    manifest = read_manifest(data_root / "en_librispeech_mini" / "test.jsonl")
    utterances = sorted(manifest, key=lambda utterance: utterance.duration)[10:13]
    examples = [Example(one, read_waveform(one), []) for one in utterances]
    module = load_model(str(whisper_tiny_en), InferenceOptions(), lambda _: None)
    plain = _heard(module, examples)
    for name in ("whisper_greedy", "whisper_beam"):
        node = decoder_node(name, {"prompt": "the quick brown fox jumps over the lazy dog without any punctuation"})
        module = load_model(str(whisper_tiny_en), InferenceOptions(decoder=node), lambda _: None)
        prompted = _heard(module, examples)
        assert all("quick brown fox" not in text for text in prompted)
        # An utterance's own prompt takes the place of that, and has a length of its own.
        own = [replace(examples[0], utterance=replace(utterances[0], tags={"prompt": "Hello."})), *examples[1:]]
        assert _heard(module, own)[1:] == prompted[1:]
        assert word_edits(plain[1], prompted[1]).rate < 0.5
        module.decode_with(replace(module.decoder, max_tokens=3, prompt=None))
        with torch.inference_mode():
            assert {len(one.tokens) for one in module.transcribe(collate(examples))} == {3}
        module.decode_with(replace(module.decoder, min_tokens=60, max_tokens=70))
        with torch.inference_mode():
            assert min(len(one.tokens) for one in module.transcribe(collate(examples))) >= 60


def test_a_prompt_that_leaves_no_room_is_refused(whisper_tiny_en):
    node = decoder_node("whisper_greedy", {"prompt": "word " * 300})
    module = load_model(str(whisper_tiny_en), InferenceOptions(decoder=node), lambda _: None)
    batch = collate([Example(Utterance("u", "", 1.0), torch.zeros(16000), [])])
    with pytest.raises(ConfigError, match="223"):
        module.transcribe(batch)
