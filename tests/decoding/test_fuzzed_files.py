"""Readers of users' files on random input: one clear error, or a result that can be written and read again.

`tests.fuzzing` says how to try more.
"""

import random

import pytest

from ssl_asr.decoding.fusion.options import read_lexicon
from ssl_asr.decoding.lexicon import read_pronunciations
from ssl_asr.decoding.ngram import NGram
from ssl_asr.errors import ManifestError
from ssl_asr.textfiles import read_lines
from tests.fuzzing import fuzz, result_of

WORDS = [
    "a",
    "b",
    "ab",
    "<s>",
    "</s>",
    "<unk>",
    "<UNK>",
    "<S>",
    "é",
    "e\u0301",
    "x\u00a0y",
    "\u3000",
    "'",
    "-99",
    "\\end\\",
]
ODD = ["n", "ai", "t", "|", "a", "▁", "\x0b", "\x85", "\u2028", "\ufeff", "\r", "\0", "\udcff", "", "\U0001f600"]
NUMBERS = [
    "-0.5",
    "-99",
    "0",
    "-1e-3",
    "-inf",
    "nan",
    "inf",
    "0.2",
    "-0,5",
    "",
    "-1E+2",
    "1_0",
    "-.3",
    "+0",
    "-7.",
    "١",
]
GAPS = ["\t", " ", "  ", " \t "]
SCRAPS = ["", "\\data\\", "\\end\\", "\\1-grams:", "\\2-grams:", "\\3-grams:", "ngram 1=3", "ngram 2=0", "\ufeff", "#"]
ENCODINGS = ["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1"]


def _word(draw):
    if draw.random() < 0.8:
        return draw.choice(WORDS)
    return "".join(
        chr(draw.choice([draw.randrange(33, 127), draw.randrange(0x300)])) for _ in range(draw.randint(1, 4))
    )


def _section(draw, known, length):
    """Lines of a section, most of them right."""
    grams = [tuple(draw.choice(known) for _ in range(length)) for _ in range(draw.randint(0, 5))]
    grams = grams if draw.random() < 0.1 else dict.fromkeys(grams)
    lines = []
    for gram in grams:
        gap, backoff = draw.choice(GAPS), draw.choice([[], ["-0.25"], ["0.125"]])
        lines.append(gap.join([f"{-9 * draw.random():.{draw.randint(1, 9)}g}", " ".join(gram), *backoff]))
    return lines


def _changed(draw, lines):
    """The lines with one change."""
    at = draw.randrange(len(lines))
    own, two = lines[at : at + 1], lines[at : at + 2]
    new, count = draw.choice(
        [
            ([], 1),
            (own * 2, 1),
            ([*own, draw.choice(SCRAPS)], 1),
            ([f"{draw.choice(NUMBERS)}\t{line.partition(chr(9))[2]}" for line in own], 1),
            ([line[: draw.randint(0, 9)] for line in own], 1),
            (two[::-1], 2),
            ([(draw.choice(ODD) + " ").join(line.split(" ")) for line in own], 1),
            ([line + draw.choice(GAPS) + draw.choice(NUMBERS) for line in own], 1),
        ]
    )
    return [*lines[:at], *new, *lines[at + count :]] or [""]


def _arpa_file(draw):
    """An ARPA file with up to three changes."""
    known = list(dict.fromkeys(_word(draw) for _ in range(draw.randint(1, 5))))
    sections = [[f"-0.{i + 1}\t{word}\t-0.5" for i, word in enumerate(known)]]
    sections += [_section(draw, known, length) for length in range(2, draw.randint(1, 3) + 1)]
    lines = ["made by a tool", "\\data\\"] if draw.random() < 0.1 else ["\\data\\"]
    lines += [f"ngram {length}={len(section)}" for length, section in enumerate(sections, start=1)]
    for length, section in enumerate(sections, start=1):
        lines += ["", f"\\{length}-grams:", *section]
    lines += ["", "\\end\\"]
    for _ in range(draw.choice([0, 0, 1, 1, 2, 3])):
        lines = _changed(draw, lines)
    return lines


def _entries(draw):
    """Bytes of a lexicon in some encoding."""
    rows = []
    for _ in range(draw.randint(0, 4)):
        pool = ODD if draw.random() < 0.2 else ["n", "ai", "t", "a", "ab", "|", "é", "\u00a0", *WORDS[:3]]
        fields = [draw.choice(pool) for _ in range(draw.randint(0, 4))]
        rows.append(draw.choice(GAPS).join(fields) + draw.choice(["\n", "\r\n", "\r"]))
    encoding = draw.choice(ENCODINGS)
    return "".join(rows).encode(encoding, errors="surrogatepass" if "utf" in encoding else "replace")


@pytest.fixture(scope="module")
def path(memory_folder):
    return memory_folder / "words.txt"


@fuzz
def test_arpa_file_is_refused_or_written_back(seed):
    lines = _arpa_file(random.Random(seed))
    model = result_of(lambda: NGram.from_arpa_lines(lines), "arpa")
    if model is None:
        return
    written = list(model.arpa_lines())
    again = NGram.from_arpa_lines(written)
    assert (again.words, again.counts()) == (model.words, model.counts())
    assert list(again.arpa_lines()) == written
    for sentence in ([], ["ab", "zz", "a"], model.words[:3]):
        assert again.sentence_log_prob(sentence) == pytest.approx(model.sentence_log_prob(sentence), rel=1e-5, abs=1e-4)


@fuzz
def test_word_list_is_refused_or_written_back(path, seed):
    path.write_bytes(_entries(random.Random(seed)))
    found = result_of(lambda: read_lexicon(path), path)
    if found is not None:
        assert found
        path.write_text("".join(f"{word}\n" for word in found), encoding="utf-8")
        assert read_lexicon(path) == list(dict.fromkeys(found)) == found


IDS = {name: i for i, name in enumerate(["<blank>", "<1>", "|", "n", "ai", "t", "a", "b", "é", "▁"])}


@fuzz
def test_lexicon_is_refused_or_written_back(path, seed):
    path.write_bytes(_entries(random.Random(seed)))
    found = result_of(lambda: read_pronunciations(path, IDS), path)
    if found is not None:
        assert all(spelling and set(spelling) <= IDS.keys() for _, spelling in found)
        path.write_text("".join(" ".join([word, *spelling]) + "\n" for word, spelling in found), encoding="utf-8")
        assert read_pronunciations(path, IDS) == found


@fuzz
def test_bytes_are_refused_or_lines_of_text(path, seed):
    draw = random.Random(seed)
    marks = [b"", b"", b"\xff\xfe", b"\xfe\xff", b"\xff\xfe\0\0", b"\xef\xbb\xbf", b"\x1f\x8b", b"\x1f\x8b\x08\0"]
    pool = draw.choice([b"ab \r\n\t", b"ab\r\n\xc3\xa9\xef\xbb\xbf", bytes(range(256))])
    path.write_bytes(draw.choice(marks) + bytes(draw.choices(pool, k=draw.randint(0, 40))))

    def read():
        return list(read_lines(path, error=ManifestError, remedy="give text"))

    lines = result_of(read, path)
    if lines is not None:
        assert [number for number, _ in lines] == list(range(1, len(lines) + 1))
        path.write_text("".join(f"{line}\n" for _, line in lines), encoding="utf-8")
        assert read() == lines
