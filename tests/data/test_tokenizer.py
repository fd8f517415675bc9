"""Characters and Whisper's tokens: round trips, special ids, prompts, and restoring from plain data."""

import json
from functools import cache
from pathlib import Path
from pydoc import locate

import pytest
from tokenizers import Tokenizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES

from ssl_asr.data.characters import Characters, CharTokenizer, PretrainedCharacters
from ssl_asr.data.symbols import SymbolTokenizer
from ssl_asr.data.tokenizer import check_coverage, restore_tokenizer
from ssl_asr.data.whisper_tokenizer import WhisperTokenizer, WhisperTokens
from ssl_asr.errors import CheckpointError, ConfigError, ManifestError
from ssl_asr.types import BLANK_ID, UNKNOWN_ID, Utterance
from tests.toys import END, NO_TIMESTAMPS, START


def said(text, **more):
    return Utterance(id="u", audio_filepath="u.wav", duration=1.0, text=text, where="m.jsonl:3", **more)


class Checkpoint:
    """A `PretrainedVocabulary` with the alphabet "ab"."""

    def __init__(self, folder=Path("nowhere")):
        self.folder = folder

    def characters(self):
        return ["a", "b"]


def test_characters_round_trip_without_blank():
    tokenizer = CharTokenizer.from_texts([said("Hello World"), said("it's")], normalizer="lower")
    ids = tokenizer.encode(said("hello it's"))
    assert tokenizer.decode(ids) == "hello it's"
    assert BLANK_ID not in ids
    assert len({BLANK_ID, UNKNOWN_ID, *ids}) == len(set(ids)) + 2
    assert max(ids) < tokenizer.vocab_size == 2 + len(set("hello world" + "it's"))
    assert tokenizer.decode([0, *ids, 0]) == "hello it's"


def test_decode_keeps_double_letters():
    tokenizer = CharTokenizer(characters="helo", normalizer="none")
    assert tokenizer.decode(tokenizer.encode(said("hello"))) == "hello"


def test_unseen_character_gets_unknown_id():
    tokenizer = CharTokenizer(characters="ab", normalizer="none")
    assert tokenizer.encode(said("axb")) == [2, 1, 3]
    assert tokenizer.decode([2, 1, 3]) == "a⁇b"


def test_coverage_error_names_missing_characters():
    tokenizer = CharTokenizer(characters="ab", normalizer="none")
    check_coverage(tokenizer, [said("ab"), said("ba")], where="train")
    with pytest.raises(ManifestError, match=r"'x' U\+0078 x2 \(first in u at m.jsonl:3\).*Extend tokenizer.characters"):
        check_coverage(tokenizer, [said("ax"), said("x")], where="train")


def test_invalid_alphabet_is_refused():
    with pytest.raises(ConfigError, match=r"repeats \['a'\]"):
        CharTokenizer(characters="aba")
    with pytest.raises(ConfigError, match="is empty"):
        CharTokenizer(characters="")
    with pytest.raises(ManifestError, match="no text"):
        CharTokenizer.from_texts([said("")], normalizer="lower")


def test_character_options_choose_the_alphabet(toy_checkpoints):
    train, checkpoint = [said("cab")], Checkpoint()
    from_train = Characters(characters=None, normalizer="lower").build(train=train, checkpoint=checkpoint)
    given = Characters(characters="xy", normalizer="lower").build(train=train, checkpoint=checkpoint)
    pretrained = PretrainedCharacters(normalizer="lower").build(train=train, checkpoint=checkpoint)
    assert [t.characters for t in (from_train, given, pretrained)] == [["a", "b", "c"], ["x", "y"], ["a", "b"]]
    option = WhisperTokens(language=None, task="transcribe", normalizer="none")
    whisper = option.build(train=train, checkpoint=Checkpoint(toy_checkpoints["whisper"]))
    assert whisper.prompt(said("ab")) == [START, NO_TIMESTAMPS]


@pytest.fixture
def whisper(toy_checkpoints):
    return WhisperTokenizer.from_folder(toy_checkpoints["whisper"], language=None, task="transcribe", normalizer="none")


def test_whisper_target_has_one_start_and_one_end(whisper):
    whole = whisper.prompt(said("ab")) + whisper.encode(said("ab"))
    assert whole[:2] == [START, NO_TIMESTAMPS]
    assert whole.count(START) == 1
    assert whole[-1] == END
    assert whole.count(END) == 1
    assert whisper.decode(whole) == "ab"
    assert whisper.encode(said("")) == [END]


def test_english_only_whisper_refuses_other_languages(whisper):
    with pytest.raises(ConfigError, match="m.jsonl:3: language 'de'"):
        whisper.prompt(said("ab", lang="de"))
    with pytest.raises(ConfigError, match="task 'translate'"):
        whisper.prompt(said("ab", task="translate"))
    for lang in ("en", "en_us", "eng", "English", "auto", None):
        assert whisper.prompt(said("ab", lang=lang)) == [START, NO_TIMESTAMPS]


SPECIAL = ["<unk>", "<s>", "</s>", "<pad>", "<blank>", "|", "▁", "⁇"]


@pytest.mark.parametrize("text", SPECIAL)
def test_spelled_special_labels_are_text_for_characters(text):
    tokenizer = CharTokenizer.from_texts([said(f"a {text}")], normalizer="none")
    ids = tokenizer.encode(said(f"a {text}"))
    assert not {BLANK_ID, UNKNOWN_ID} & set(ids)
    assert tokenizer.decode(ids) == f"a {text}"
    assert CharTokenizer(characters="z", normalizer="none").unseen(said(text)) == list(text)


CONTROL = [
    "hello <|endoftext|> world",
    "<|en|> hi",
    "<|startoftranscript|><|de|><|translate|>",
    "<|0.00|> a <|30.00|>",
    "<|nospeech|>",
    "<|notimestamps|> x <|startofprev|> y <|startoflm|>",
]


@pytest.mark.parametrize("text", CONTROL)
def test_spelled_special_tokens_are_text_for_whisper(whisper_tiny_en, text):
    tokenizer = WhisperTokenizer.from_folder(whisper_tiny_en, language=None, task="transcribe", normalizer="none")
    *ids, end = tokenizer.encode(said(text))
    assert end == tokenizer.end_id
    assert max(ids) < tokenizer.end_id
    assert tokenizer.decode(ids) == text
    start, *previous = tokenizer.previous(text)
    assert max(previous) < tokenizer.end_id < start
    assert tokenizer.encode(said(tokenizer.decode(ids)))[:-1] == ids


@cache
def _multilingual_json(whisper_tiny_en, languages):
    """The tokenizer of tiny.en with the special tokens of a multilingual checkpoint, as JSON."""
    content = json.loads((whisper_tiny_en / "tokenizer.json").read_text())
    content["added_tokens"] = []
    content["post_processor"] = None
    tokenizer = Tokenizer.from_str(json.dumps(content))
    # Multilingual vocabularies have one more entry before the special tokens.
    tokens = ["<|spare|>", "<|endoftext|>", "<|startoftranscript|>", *(f"<|{code}|>" for code in languages)]
    tokens += [
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
    ]
    tokenizer.add_special_tokens(tokens)
    return tokenizer.to_str()


@cache
def _multilingual(whisper_tiny_en, *, languages, **options):
    return WhisperTokenizer(tokenizer_json=_multilingual_json(whisper_tiny_en, languages), **options)


# The languages of all multilingual checkpoints before large-v3.
OLD = tuple(code for code in LANGUAGES if code != "yue")


@pytest.mark.parametrize(
    ("form", "token"),
    [
        ("zh_cn", "zh"), ("cmn_hans_cn", "zh"), ("zh-HK", "zh"), ("German", "de"), ("deu", "de"), ("jv_id", "jw"),
        ("fil_ph", "tl"), ("nb", "no"), ("nb_no", "no"), ("nn-NO", "nn"), ("iw", "he"), ("tr-TR", "tr"), ("EN", "en"),
    ],
)  # fmt: skip
def test_language_of_any_form_gives_the_token_of_the_checkpoint(whisper_tiny_en, form, token):
    options = {"task": "transcribe", "normalizer": "none"}
    tokenizer = _multilingual(whisper_tiny_en, languages=OLD, language=form, **options)
    assert tokenizer.language == token
    expected = tokenizer.languages[token]
    assert tokenizer.prompt(said("a"))[1] == expected
    other = _multilingual(whisper_tiny_en, languages=OLD, language="auto", **options)
    assert other.language is None
    assert other.prompt(said("a", lang=form))[1] == expected
    with pytest.raises(ConfigError, match="m.jsonl:3: no language"):
        other.prompt(said("a", lang="und"))


@pytest.mark.parametrize(
    ("form", "message"),
    [("yue", "did you mean 'zh'"), ("gsw", "did you mean 'de'"), ("xx", "use one of en zh de")],
)
def test_unknown_language_is_an_error_with_its_place(whisper_tiny_en, form, message):
    options = {"language": None, "task": "transcribe", "normalizer": "none"}
    tokenizer = _multilingual(whisper_tiny_en, languages=OLD, **options)
    with pytest.raises(ConfigError, match=rf"(?i)m.jsonl:3: this checkpoint has no language '{form}'. {message}"):
        tokenizer.prompt(said("a", lang=form))
    new = _multilingual(whisper_tiny_en, languages=(*OLD, "yue"), **options)
    assert new.prompt(said("a", lang="yue_hant_hk"))[1] == new.languages["yue"]


def test_restored_tokenizer_equals_original(whisper):
    for tokenizer in (whisper, CharTokenizer(characters="ab c", normalizer="lower")):
        again = restore_tokenizer(tokenizer.state(), locate)
        assert again.state() == tokenizer.state()
        assert again.encode(said("ab c")) == tokenizer.encode(said("ab c"))


def test_restore_loads_other_kinds_by_class_path():
    state = {"kind": "ssl_asr.data.characters.CharTokenizer", "characters": ["a"], "normalizer": "none"}
    assert restore_tokenizer(state, locate).encode(said("a")) == [2]
    with pytest.raises(CheckpointError, match="unknown kind"):
        restore_tokenizer({"kind": "runes"}, locate)


def test_real_whisper_encodes_like_transformers(whisper_tiny_en):
    from transformers import PreTrainedTokenizerFast

    reference = PreTrainedTokenizerFast(tokenizer_file=str(whisper_tiny_en / "tokenizer.json"))
    tokenizer = WhisperTokenizer.from_folder(whisper_tiny_en, language=None, task="transcribe", normalizer="none")
    text = "rubout g m e f three nine"
    assert tokenizer.encode(said(text))[:-1] == reference(" " + text, add_special_tokens=False).input_ids
    assert tokenizer.decode(tokenizer.encode(said(text))) == text
    assert tokenizer.vocab_size == 51864
    assert not tokenizer.is_multilingual


def test_lacking_labels_are_named_with_their_number_and_their_first_utterance():
    characters = CharTokenizer(characters="ab", normalizer="none")
    with pytest.raises(
        ManifestError, match=r"2 characters are not in .*: 'x' U\+0078 x2 \(first in .*\); 'é' U\+00E9 x1"
    ):
        check_coverage(characters, [said("axé"), said("x")], where="train")
    symbols = SymbolTokenizer(symbols=["K"], normalizer="none")
    with pytest.raises(ManifestError, match=r"1 symbols are not in the vocabulary: 'AE1' x3 \(first"):
        check_coverage(symbols, [said("K AE1 AE1"), said("AE1")], where="train")
