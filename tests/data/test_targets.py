"""Counts of targets: equal to encoding each text, kept beside large manifests, and never those of something else."""

import json
import random

import numpy as np
import pytest

from ssl_asr.data import line_index, manifest, parallel, targets
from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.filters import Limits, fault_of, select
from ssl_asr.data.manifest import Manifest, pack_rows, read_manifest
from ssl_asr.data.symbols import SymbolTokenizer
from ssl_asr.data.targets import count_targets, ctc_frames_needed
from ssl_asr.data.tokenizer import check_coverage
from ssl_asr.types import Utterance

FIELDS = ("tokens_N", "frames_N", "blank_N", "unseen_N")


def said(text, lang=None):
    return Utterance(id="u", audio_filepath="a.wav", duration=1.0, text=text, lang=lang)


def one_by_one(utterances, tokenizer):
    """Tokens, frames, whether the text is blank, and whether it has unseen labels, of each utterance."""
    return [
        (len(ids := tokenizer.encode(one)), ctc_frames_needed(ids), not one.text.strip(), bool(tokenizer.unseen(one)))
        for one in utterances
    ]


def counted(utterances, tokenizer):
    found = count_targets(utterances, tokenizer)
    return list(zip(*(getattr(found, name).tolist() for name in FIELDS), strict=True))


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A manifest of 40 lines, which counts as large, and the numbers of the lines that are encoded."""
    monkeypatch.setattr(line_index, "_FEWEST_LINES", 3)
    path = tmp_path / "m.jsonl"
    texts = ["ab", "aab bba", "", " ", "abc", "ß", "c" * 9]
    rows = [
        {"audio_filepath": "a.wav", "duration": 0.1 * (1 + i % 9), "text": texts[i % len(texts)], "id": str(i)}
        for i in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def encoded(monkeypatch):
    """The texts that are encoded."""
    found = []
    count = CharTokenizer.count_targets
    monkeypatch.setattr(CharTokenizer, "count_targets", lambda self, texts: found.extend(texts) or count(self, texts))
    return found


@pytest.mark.parametrize("characters", ["ab ", ["é", "ab", "a", "日", " "], "z"])
@pytest.mark.parametrize("normalizer", ["none", "lower", "basic"])
@pytest.mark.parametrize("drawn", ["aab é日Z😀\ud800İ", "aab  Zz'"], ids=["unicode", "ascii"])
def test_characters_are_counted_as_they_are_encoded(characters, normalizer, drawn):
    draw = random.Random(0)
    texts = ["".join(draw.choices(drawn, k=draw.randrange(6))) for _ in range(400)]
    tokenizer = CharTokenizer(characters=characters, normalizer=normalizer)
    rows = [said(text, draw.choice([None, "tr"])) for text in ["", *texts, ""]]
    assert counted(rows, tokenizer) == one_by_one(rows, tokenizer)
    assert counted([said("")], tokenizer) == [(0, 0, True, False)]
    assert counted([], tokenizer) == []


def test_symbols_are_counted_as_they_are_encoded():
    tokenizer = SymbolTokenizer(symbols=["AA", "K"], normalizer="none")
    assert counted([said("K K AA"), said("AA X"), said("")], tokenizer) == [
        (3, 4, False, False),
        (2, 2, False, True),
        (0, 0, True, False),
    ]


@pytest.mark.parametrize(
    "limits",
    [
        Limits(),
        Limits(min_s=0.25, max_s=0.75),
        Limits(max_tokens=7, prompt_tokens=3),
        Limits(ctc_frames=lambda samples: samples // 1600),
        Limits(ctc_frames=lambda samples: samples // 1600, allow_empty_text=True),
    ],
)
def test_selection_by_counts_is_that_of_each_utterance(large, limits, monkeypatch):
    """Also where a manifest is divided among processes."""
    monkeypatch.setattr(parallel, "_RANGE", 7)
    monkeypatch.setattr(parallel, "_FEWEST", 20)
    tokenizer, opened = CharTokenizer(characters="ab "), read_manifest(large)
    faults = [fault_of(one, limits, tokenizer) for one in opened]
    selection = select("train", opened, limits, tokenizer=tokenizer, check_audio=False, progress=False)
    assert selection.skips == [fault for fault in faults if fault is not None]
    assert [one.id for one in selection.kept] == [str(i) for i, fault in enumerate(faults) if fault is None]


def test_a_large_manifest_is_counted_once(large, encoded):
    tokenizer = CharTokenizer(characters="abcß ")
    first = check_coverage(tokenizer, read_manifest(large), where="train")
    assert len(encoded) == 40
    again = check_coverage(CharTokenizer(characters="abcß "), read_manifest(large), where="train")
    assert len(encoded) == 40
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(again, name), getattr(first, name))
    joined = Manifest.joined({"one": read_manifest(large)}, "train")
    assert counted(joined, tokenizer) == one_by_one(joined, tokenizer)
    assert len(encoded) == 40, "the only corpus of a run is its manifest"


def test_counts_of_something_else_are_not_taken(large, encoded, monkeypatch):
    tokenizer, opened = CharTokenizer(characters="ab "), read_manifest(large)
    count_targets(opened, tokenizer)
    others = [
        (CharTokenizer(characters="abc"), opened),
        (CharTokenizer(characters="ab ", normalizer="basic"), opened),
        (tokenizer, opened.select(range(20, 30))),
        (tokenizer, Manifest.joined({"one": opened, "two": opened}, "train")),
    ]
    for other, rows in others:
        before = len(encoded)
        assert counted(rows, other) == one_by_one(rows, other)
        assert len(encoded) == before + len(rows)
    count_targets(opened, tokenizer)
    before = len(encoded)
    # A line that changes, and code that changes.
    large.write_text(large.read_text().replace('"aab bba"', '"aab bbb"'))
    assert counted(read_manifest(large), tokenizer) == one_by_one(read_manifest(large), tokenizer)
    monkeypatch.setattr(targets, "_code_key", lambda: ["other"])
    count_targets(read_manifest(large), tokenizer)
    assert len(encoded) == before + 80


def test_counts_are_kept_only_where_they_can_be_recognized(large, tmp_path, encoded):
    class Other(CharTokenizer):
        pass

    kept = large.with_name(".m.jsonl.targets")
    opened = read_manifest(large)
    count_targets(opened, Other(characters="ab "))
    count_targets(list(opened), CharTokenizer(characters="ab "))
    count_targets(
        pack_rows([{"audio_filepath": "a.wav", "duration": 1.0, "text": "a"}] * 5, tmp_path),
        CharTokenizer(characters="a"),
    )
    assert not kept.exists()
    count_targets(opened, CharTokenizer(characters="ab "))
    damaged = kept.read_bytes()[:-200]
    kept.write_bytes(damaged)
    before = len(encoded)
    assert counted(opened, CharTokenizer(characters="ab ")) == one_by_one(opened, CharTokenizer(characters="ab "))
    assert len(encoded) == before + 40


def test_lines_are_read_together_as_they_are_one_by_one(large, monkeypatch):
    opened = read_manifest(large)
    alone = [opened[i] for i in range(40)]
    mixed = Manifest.joined({"one": opened, "two": opened.select([5, 3])}, "train")
    for sparse in (0, 1, 4):
        monkeypatch.setattr(manifest, "_SPARSE", sparse)
        assert opened[:] == list(opened) == alone
        assert opened[30:2:-3] == alone[30:2:-3]
        assert opened.select([39, 0, 7])[:] == [alone[39], alone[0], alone[7]]
        assert mixed[38:] == [alone[38], alone[39], alone[5], alone[3]]
        assert opened[5:5] == []
