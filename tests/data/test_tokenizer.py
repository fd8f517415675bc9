import pytest

from ssl_asr.data.tokenizer import CharTokenizer, WhisperTokenizer, check_coverage, restore_tokenizer
from ssl_asr.errors import CheckpointError, ConfigError, ManifestError
from ssl_asr.types import BLANK_ID, UNKNOWN_ID, Utterance
from tests.toys import END, NO_TIMESTAMPS, START


def said(text, **more):
    return Utterance(id="u", audio_filepath="u.wav", duration=1.0, text=text, where="m.jsonl:3", **more)


def test_characters_round_trip_and_blank_is_no_label():
    tokenizer = CharTokenizer.from_texts([said("Hello World"), said("it's")], normalizer="lower")
    ids = tokenizer.encode(said("hello it's"))
    assert tokenizer.decode(ids) == "hello it's"
    assert BLANK_ID not in ids
    assert len({BLANK_ID, UNKNOWN_ID, *ids}) == len(set(ids)) + 2
    assert max(ids) < tokenizer.vocab_size == 2 + len(set("hello world" + "it's"))
    assert tokenizer.decode([0, *ids, 0]) == "hello it's"


def test_double_letters_survive_decoding():
    tokenizer = CharTokenizer(characters="helo", normalizer="none")
    assert tokenizer.decode(tokenizer.encode(said("hello"))) == "hello"


def test_an_unseen_character_is_unknown_and_never_a_blank():
    tokenizer = CharTokenizer(characters="ab", normalizer="none")
    assert tokenizer.encode(said("axb")) == [2, 1, 3]
    assert tokenizer.decode([2, 1, 3]) == "a⁇b"
    with pytest.raises(ManifestError, match=r"'x' U\+0078 x2 \(first at m.jsonl:3\)"):
        check_coverage(tokenizer, [said("ax"), said("x")], where="train")


def test_a_faulty_alphabet_is_refused():
    with pytest.raises(ConfigError, match=r"repeats \['a'\]"):
        CharTokenizer(characters="aba")
    with pytest.raises(ConfigError, match="is empty"):
        CharTokenizer(characters="")
    with pytest.raises(ManifestError, match="no text"):
        CharTokenizer.from_texts([said("")], normalizer="lower")


@pytest.fixture
def whisper(toy_checkpoints):
    return WhisperTokenizer.from_folder(toy_checkpoints["whisper"], language=None, task="transcribe", normalizer="none")


def test_whisper_has_one_start_and_ends_with_the_end(whisper):
    whole = whisper.prompt(said("ab")) + whisper.encode(said("ab"))
    assert whole[:2] == [START, NO_TIMESTAMPS]
    assert whole.count(START) == 1
    assert whole[-1] == END
    assert whole.count(END) == 1
    assert whisper.decode(whole) == "ab"
    assert whisper.encode(said("")) == [END]


def test_english_only_refuses_other_languages(whisper):
    with pytest.raises(ConfigError, match="m.jsonl:3: language 'de'"):
        whisper.prompt(said("ab", lang="de"))
    with pytest.raises(ConfigError, match="task 'translate'"):
        whisper.prompt(said("ab", task="translate"))
    assert whisper.prompt(said("ab", lang="en")) == [START, NO_TIMESTAMPS]


def test_plain_state_makes_an_equal_tokenizer(whisper):
    for tokenizer in (whisper, CharTokenizer(characters="ab c", normalizer="lower")):
        again = restore_tokenizer(tokenizer.state())
        assert again.state() == tokenizer.state()
        assert again.encode(said("ab c")) == tokenizer.encode(said("ab c"))
    with pytest.raises(CheckpointError, match="unknown kind"):
        restore_tokenizer({"kind": "runes"})


def test_real_whisper_spells_as_transformers_does(whisper_tiny_en):
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(tokenizer_file=str(whisper_tiny_en / "tokenizer.json"))
    tokenizer = WhisperTokenizer.from_folder(whisper_tiny_en, language=None, task="transcribe", normalizer="none")
    text = "rubout g m e f three nine"
    assert tokenizer.encode(said(text))[:-1] == reference(" " + text, add_special_tokens=False).input_ids
    assert tokenizer.decode(tokenizer.encode(said(text))) == text
    assert tokenizer.vocab_size == 51864
    assert not tokenizer.is_multilingual
