"""The default limit of Whisper's decoders ends loops, and no real transcript reaches it."""

from pathlib import Path

import pytest
import yaml
from tokenizers import Tokenizer

from ssl_asr.data.manifest import read_manifest
from ssl_asr.decoding.seq2seq import WhisperBeam, WhisperGreedy

CONF = Path(__file__).parents[2] / "conf" / "decoder"
MANIFESTS = ["de_kerstin/dev.jsonl", "en_an4/test.jsonl", "en_librispeech_mini/dev.jsonl"]


def decoders():
    for name, kind in (("whisper_greedy", WhisperGreedy), ("whisper_beam", WhisperBeam)):
        options = yaml.safe_load((CONF / f"{name}.yaml").read_text())
        yield kind(**{key: value for key, value in options.items() if key not in ("_target_", "defaults")})


@pytest.mark.parametrize("name", MANIFESTS)
def test_no_reference_reaches_the_limit(data_root, whisper_tiny_en, name):
    if not (data_root / name).is_file():
        pytest.skip(f"{name} is not there")
    tokenizer = Tokenizer.from_file(str(whisper_tiny_en / "tokenizer.json"))
    utterances = list(read_manifest(data_root / name))
    counts = [len(tokenizer.encode(f" {one.text}", add_special_tokens=False).ids) + 1 for one in utterances]
    for decoder in decoders():
        limits = decoder.limits(utterances)
        assert all(2 * count < limit for count, limit in zip(counts, limits, strict=True))


def test_a_loop_ends_after_eight_tokens_and_forty_a_second(toy_utterance):
    for decoder in decoders():
        assert decoder.limits([toy_utterance]) == [8 + 100]


@pytest.fixture
def toy_utterance():
    from ssl_asr.types import Utterance

    return Utterance(id="a", audio_filepath="a.wav", duration=2.5, text="a")
