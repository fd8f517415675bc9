"""Words and phrases that a model cannot spell are named, and the rest is used."""

import gzip
import math
import string
import warnings

import pytest
import torch

from ssl_asr.console import Notice, hush
from ssl_asr.decoding.ctc import CtcBeam
from ssl_asr.decoding.fusion.options import FusionOptions, read_lexicon
from ssl_asr.decoding.fusion.spelling import Speller
from ssl_asr.decoding.lexicon import CtcLexicon
from ssl_asr.decoding.seq2seq import WhisperBeam
from ssl_asr.errors import LanguageModelError
from tests.decoding.options import CTC_BEAM
from tests.decoding.options import FUSION as SHARED

LABELS = [None, None, " ", *string.ascii_lowercase]
PIECES = [None, None, " the", " a", "m", "n", " b", "ot", "é", " "]
FUSION = SHARED | {"hotword_score": 2.0}


def _hotwords(phrases, labels=LABELS):
    """Phrases that are used, and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        (part,) = FusionOptions(**(FUSION | {"hotwords": phrases})).parts(labels)
    return sorted(phrase.strip() for phrase in part._phrases), [str(each.message) for each in caught]


@pytest.mark.parametrize(
    ("phrases", "used", "reason"),
    [
        (["marry", "Zoë"], ["marry"], "'Zoë' (letters that are not in the vocabulary: ë)"),
        (["marry", "MARIE"], ["marry"], "'MARIE' (case: write 'marie')"),
        (["room 101", "marry"], ["marry"], "'room 101' (letters that are not in the vocabulary: 0 1)"),
        (["marry", "marry’s"], ["marry"], "'marry’s' (letters that are not in the vocabulary: ’)"),
        (["marry", "ｍａｒｉｅ"], ["marry"], "'ｍａｒｉｅ' (write 'marie')"),
        (["marry", "Ｍarie"], ["marry"], "'Ｍarie' (write 'marie')"),
        (["marry", "  "], ["marry"], "'  ' (it has no letters)"),
        (["marry", "Straße"], ["marry"], "'Straße' (letters that are not in the vocabulary: ß)"),
        (["marry", "日本"], ["marry"], "'日本' (letters that are not in the vocabulary: 日 本)"),
    ],
)
def test_phrases_that_cannot_be_spelled_are_named(phrases, used, reason):
    found, messages = _hotwords(phrases)
    assert found == used
    (message,) = messages
    assert message.startswith("decoder.hotwords: 1 of 2 phrases have no effect, as the model cannot spell them: ")
    assert reason in message


@pytest.mark.parametrize(
    "data",
    [
        b"marry\nnew york\n",
        b"\xef\xbb\xbfmarry\r\n\r\n  new\tyork  \r\n",
        "marry\nnew york".encode("utf-16"),
        gzip.compress(b"marry\nnew york\n"),
    ],
    ids=["plain", "mark, tabs and blank lines", "UTF-16", "gzip"],
)
def test_phrases_of_a_file_are_its_lines(tmp_path, data):
    path = tmp_path / "names.txt"
    path.write_bytes(data)
    found, messages = _hotwords([str(path), "san jose"])
    assert found == ["marry", "new york", "san jose"]
    assert not messages


def test_a_file_without_a_phrase_or_with_other_bytes_is_refused(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\n \n")
    with pytest.raises(LanguageModelError, match="names.txt: has no phrase. Write one phrase per line"):
        _hotwords([str(path)])
    path.write_bytes(b"marry\nzo\xeb\n")
    with pytest.raises(LanguageModelError, match="names.txt:2"):
        _hotwords([str(path)])
    assert _hotwords(["a" * 5000])[0] == ["a" * 5000]


@pytest.mark.parametrize("name", ["naems.txt", "naems.TXT.gz"])
def test_a_misspelled_file_of_hotwords_is_not_a_phrase(name):
    with pytest.raises(LanguageModelError, match=f"{name}: no such file of hotwords. Check the path"):
        _hotwords(["marry", name])


def test_spaces_and_byte_order_marks_in_phrases_do_not_matter():
    found, messages = _hotwords(["\ufeffmarry", "new\tyork\r\n", "san \u00a0 jose"])
    assert found == ["marry", "new york", "san jose"]
    assert not messages


def test_every_normal_form_of_a_phrase_is_used():
    for letters in ("\u00e9", "e\u0301"):
        labels = [None, None, " ", *"caf", *letters]
        for phrase in ("caf\u00e9", "cafe\u0301"):
            assert _hotwords([phrase], labels) == ([f"caf{letters}"], [])


@pytest.mark.parametrize("phrases", [["Zoë"], ["MARIE", "ZOË"], [""], ["  ", "\t"]])
def test_a_list_without_phrases_that_can_be_spelled_is_an_error(phrases):
    with pytest.raises(LanguageModelError, match=rf"none of its {len(phrases)} phrases can be spelled"):
        _hotwords(phrases)


def test_long_lists_are_shortened():
    _, (message,) = _hotwords(["marry", *(f"room {number}" for number in range(100, 150))])
    assert "50 of 51 phrases" in message
    assert message.count("'room ") == 20
    assert message.endswith("… and 30 more.")


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        *((phrase, True) for phrase in ("the", "them", "them a", "not", "bot", "b", "é", "mm mn")),
        *((phrase, False) for phrase in ("", "he", "ma", "th", "the ma")),
    ],
)
def test_word_pieces_spell_a_word_only_one_after_another(phrase, expected):
    assert Speller(PIECES).can_spell(phrase) is expected


def test_labels_with_a_space_inside_and_vocabularies_without_a_space():
    # "b a" ends a word with b and begins one with a.
    assert [Speller([None, "c", "b a"]).can_spell(word) for word in ("cb", "ac", "ca")] == [True, True, False]
    speller = Speller([None, "日", "本"])
    assert speller.can_spell("日本")
    assert not speller.can_spell("日 本")
    assert speller.reason("日 本") == "the vocabulary has no space"
    assert Speller(PIECES).reason("he") == "no labels one after another spell it"
    assert [Speller([None, " AA", " K"]).can_spell(phrase) for phrase in ("AA K", "AAK")] == [True, False]


def _decoded(search, text):
    """The decoded text of confident frames that say ``text``."""
    frames = torch.full((1, 2 * len(text), len(LABELS)), math.log(1e-4))
    for at, letter in enumerate(text):
        frames[0, 2 * at, LABELS.index(letter)] = math.log(0.6)
        frames[0, 2 * at + 1, 0] = math.log(0.99)
    best = search(frames.log_softmax(-1), torch.tensor([2 * len(text)]))[0][0]
    return "".join(LABELS[token] for token in best.tokens).strip()


def test_a_closed_lexicon_names_the_words_that_it_loses(tmp_path):
    path = tmp_path / "words.lex"
    path.write_text("marry\nCALL\nnow\nmarry\n")
    options = FUSION | CTC_BEAM | {"lexicon": str(path), "unknown_score": None}
    with pytest.warns(Notice, match=r"words\.lex: 1 of 3 words are never written.*'CALL' \(case: write 'call'\)"):
        search = CtcBeam(**options).build(LABELS)
    assert _decoded(search, "marry now") == "marry now"


@pytest.mark.parametrize(
    "data",
    [
        "\ufeffab\r\ncab\r\nback\r\n".encode(),
        b"ab\rcab\rback",
        "ab\ncab\nback\n".encode("utf-16"),
        b"  ab \n\n\tcab\tc a b\nback  b a c k\n",
        b"ab a b |\ncab c a b |\nback b a c k |\n",
    ],
)
def test_every_word_of_a_lexicon_can_be_written(tmp_path, data):
    path = tmp_path / "words.lex"
    path.write_bytes(data)
    options = FUSION | CTC_BEAM | {"lexicon": str(path), "unknown_score": None}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search = CtcBeam(**options).build(LABELS)
    for word in ("ab", "cab", "back", "ab cab"):
        assert _decoded(search, word) == word


def test_lines_of_a_lexicon_with_more_than_a_word_are_named(tmp_path):
    path = tmp_path / "words.lex"
    path.write_text("ab a b |\nab back\nback b ae k\ncab\n")
    with pytest.warns(
        Notice, match=r"words.lex: .*only the first field of these lines is used: 2: ab back, 3: back b ae k"
    ):
        assert read_lexicon(path) == ["ab", "back", "cab"]


def test_lexicon_of_pronunciations_names_every_wrong_word(tmp_path):
    pytest.importorskip("flashlight.lib.text", reason="flashlight-text is not installed")
    path = tmp_path / "words.lex"
    options = {"lm": None, "lm_weight": 0.0, "word_score": 0.0, "beam_size": 50, "beam_threshold": 100.0}
    decoder = CtcLexicon(**options, lexicon=str(path), max_labels=None, n_best=1)
    path.write_bytes("\ufeffab\r\nCALL\r\nback b a k\r\nnow n o 9\r\n".encode())
    with pytest.raises(
        LanguageModelError, match=r"words\.lex:2: 'CALL' contains 'C'.* and 1 more words are wrong \(now\)"
    ):
        decoder.build(LABELS)
    path.write_bytes("\ufeffab\r\nback  b\ta c k\r\n".encode())
    assert _decoded(decoder.build(LABELS), "ab back") == "ab back"


def test_words_and_labels_that_a_language_model_lacks_are_named(tmp_path):
    lines = ["\\data\\", "ngram 1=4", "\\1-grams:", "-1\tab", "-1\tAB", "-1\t</s>", "-9\t<s>", "\\end\\", ""]
    (tmp_path / "lm.arpa").write_text("\n".join(lines))
    options = FUSION | {"lm": str(tmp_path / "lm.arpa")}
    with pytest.warns(Notice, match=r"lm\.arpa: 1 of 2 words are never written.*'AB' \(case: write 'ab'\)"):
        FusionOptions(**options).parts(LABELS)
    (tmp_path / "words.lex").write_text("ab\nback\n")
    with pytest.warns(Notice, match=r"words\.lex: .*neither these words nor <unk>.*: back\."):
        FusionOptions(**(options | {"lexicon": str(tmp_path / "words.lex")})).parts(LABELS)
    (tmp_path / "lm.arpa").write_text("\n".join(lines).replace("AB", "a").replace("ab", "b"))
    with pytest.warns(Notice, match=r"decoder\.lm: 25 of 27 labels are not in the model.*▁, c, d"):
        FusionOptions(**(options | {"lm_unit": "label"})).parts(LABELS)


def test_hotwords_of_whisper_ignore_case_and_punctuation_and_are_named_otherwise(tmp_path, monkeypatch):
    tokens = ["", " Marry", " New", " York", " a", "b", "!"]

    def parts(phrases):
        (part,) = WhisperBeam(
            suppress=True, max_tokens_per_s=None, timestamps=False, beam_size=2, length_penalty=0.0, n_best=1,
            hotwords=phrases,
        ).parts(len(tokens), lambda ids: tokens[ids[0]])  # fmt: skip
        return sorted(phrase.strip() for phrase in part._phrases)

    assert parts(["MARRY!", "new\tyork."]) == ["marry", "new york"]
    (tmp_path / "names.txt").write_text("MARRY!\nnew york.\n", encoding="utf-8-sig")
    assert parts([str(tmp_path / "names.txt")]) == ["marry", "new york"]
    (tmp_path / "marry").write_text("new york")
    (tmp_path / "names.txt").write_text("MARRY!\n")
    monkeypatch.chdir(tmp_path)
    assert parts(["names.txt"]) == ["marry"], "a phrase of a file is not the name of a file"
    with pytest.warns(Notice, match="'!\\?' "):
        assert parts(["a", "!?"]) == ["a"]


def test_commands_print_a_notice_as_one_line_and_once(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        hush()
        for _ in range(2):
            FusionOptions(**(FUSION | {"hotwords": ["marry", "ZOE"]})).parts(LABELS)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "warning: decoder.hotwords: 1 of 2 phrases have no effect, as the model cannot spell them: "
        "'ZOE' (case: write 'zoe')."
    ]
