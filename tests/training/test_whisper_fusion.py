"""Language models, hotwords and prompts change Whisper's transcripts of real speech."""

from dataclasses import replace

import pytest
import torch

from ssl_asr.config.nodes import option_node
from ssl_asr.config.options import build_option
from ssl_asr.data.audio import read_waveform
from ssl_asr.data.dataset import collate
from ssl_asr.data.manifest import read_manifest
from ssl_asr.decoding.kneser_ney import estimate
from ssl_asr.decoding.seq2seq import fold
from ssl_asr.errors import ConfigError
from ssl_asr.inference.model import InferenceOptions, load_model
from ssl_asr.metrics.edit import word_edits
from ssl_asr.types import Example, Utterance


def _transcripts(module, examples):
    with torch.inference_mode():
        return [fold(one.text) for one in module.transcribe(collate(examples))]


@pytest.mark.slow
def test_language_model_and_hotwords_correct_transcripts(whisper_tiny_en, data_root, tmp_path):
    manifest = read_manifest(data_root / "en_librispeech_mini" / "test.jsonl")
    utterances = sorted(manifest, key=lambda utterance: utterance.duration)[10:22]
    examples = [Example(one, read_waveform(one), []) for one in utterances]
    options = InferenceOptions(
        decoder=build_option(option_node("decoder", "whisper_beam", {"beam_size": 4}), "decoder")
    )
    module = load_model(str(whisper_tiny_en), options, lambda _: None)
    plain = _transcripts(module, examples)
    assert _transcripts(module, examples) == plain
    edits = [word_edits(one.text, text).errors for one, text in zip(utterances, plain, strict=True)]
    worst = max(range(len(edits)), key=edits.__getitem__)
    assert edits[worst] > 0, "expected tiny.en to make an error in at least one of twelve utterances"
    # A language model of the references themselves reduces the errors.
    model = estimate([one.text.split() for one in utterances], order=3).model
    model.write_arpa(tmp_path / "lm.arpa")
    module.set_decoder(replace(module.decoder, lm=str(tmp_path / "lm.arpa"), lm_weight=0.5, unknown_score=-2.0))
    with_lm = [
        word_edits(one.text, text).errors for one, text in zip(utterances, _transcripts(module, examples), strict=True)
    ]
    assert sum(with_lm) < sum(edits)
    missed = [word for word in utterances[worst].text.split() if word not in plain[worst].split()]
    module.set_decoder(replace(module.decoder, lm=None, hotwords=missed, hotword_score=1.0))
    boosted = _transcripts(module, examples)
    assert sum(word in boosted[worst].split() for word in missed) > 0, (missed, boosted[worst])


def test_prompts_are_not_transcribed_and_token_bounds_are_kept(whisper_tiny_en, data_root):
    manifest = read_manifest(data_root / "en_librispeech_mini" / "test.jsonl")
    utterances = sorted(manifest, key=lambda utterance: utterance.duration)[10:13]
    examples = [Example(one, read_waveform(one), []) for one in utterances]
    module = load_model(str(whisper_tiny_en), InferenceOptions(), lambda _: None)
    plain = _transcripts(module, examples)
    for name in ("whisper_greedy", "whisper_beam"):
        node = build_option(
            option_node(
                "decoder", name, {"prompt": "the quick brown fox jumps over the lazy dog without any punctuation"}
            ),
            "decoder",
        )
        module = load_model(str(whisper_tiny_en), InferenceOptions(decoder=node), lambda _: None)
        prompted = _transcripts(module, examples)
        assert all("quick brown fox" not in text for text in prompted)
        # The manifest's prompt of an utterance replaces the decoder's prompt, and may have another length.
        own = [replace(examples[0], utterance=replace(utterances[0], tags={"prompt": "Hello."})), *examples[1:]]
        assert _transcripts(module, own)[1:] == prompted[1:]
        assert word_edits(plain[1], prompted[1]).rate < 0.5
        module.set_decoder(replace(module.decoder, max_tokens=3, prompt=None))
        with torch.inference_mode():
            assert {len(one.tokens) for one in module.transcribe(collate(examples))} == {3}
        module.set_decoder(replace(module.decoder, min_tokens=60, max_tokens=70))
        with torch.inference_mode():
            assert min(len(one.tokens) for one in module.transcribe(collate(examples))) >= 60


def test_prompt_that_is_too_long_raises_an_error(whisper_tiny_en):
    node = build_option(option_node("decoder", "whisper_greedy", {"prompt": "word " * 300}), "decoder")
    module = load_model(str(whisper_tiny_en), InferenceOptions(decoder=node), lambda _: None)
    batch = collate([Example(Utterance("u", "", 1.0), torch.zeros(16000), [])])
    with pytest.raises(ConfigError, match="223"):
        module.transcribe(batch)
