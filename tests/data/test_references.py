"""Sets whose error rate would be no number are refused, and references that the model cannot write are named."""

import json
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from ssl_asr.console import Notice
from ssl_asr.data.characters import CharTokenizer
from ssl_asr.data.concatenation import Concatenation, joined
from ssl_asr.data.filters import Limits, fault_of
from ssl_asr.data.manifest import read_manifest
from ssl_asr.data.references import all_references, check_references, drawn_reference
from ssl_asr.data.sentences import read_sentences
from ssl_asr.data.targets import count_targets
from ssl_asr.data.text import get_normalizers
from ssl_asr.data.tokenizer import check_coverage, warn_of_unseen
from ssl_asr.errors import ManifestError
from ssl_asr.types import Utterance
from tests.data.test_module import config as config  # a fixture
from tests.data.test_module import data_of


def pairs(*texts):
    return [(text, "en") for text in texts]


def test_one_reference_with_text_is_enough():
    check_references(pairs("", " ", "a"), get_normalizers(["none", "lower", "basic"]), where="d")
    # Another reference has text under each normalizer: "..." only under none, "uh" only under lower.
    check_references(pairs("...", "uh"), get_normalizers(["none", "lower"]), where="d")


def test_references_are_read_only_until_there_is_one_with_text():
    texts = iter(pairs("", "a", "b"))
    check_references(texts, get_normalizers(["lower"]), where="d")
    assert list(texts) == pairs("b")


@pytest.mark.parametrize("texts", [[], [""], ["", " \t", "\u00a0"]])
def test_references_without_text_are_refused(texts):
    with pytest.raises(ManifestError, match="d.jsonl: all references are empty, so there is no error rate. Add the"):
        check_references(pairs(*texts), get_normalizers(["lower"]), where="d.jsonl")


def test_references_that_a_normalizer_empties_are_refused():
    with pytest.raises(ManifestError, match="d: all references are empty after the normalizer basic, so there is no"):
        check_references(pairs("...", "?!", ""), get_normalizers(["none", "basic"]), where="d")
    with pytest.raises(ManifestError, match="after the normalizer whisper_english"):
        check_references(pairs("uh", "[noise]"), get_normalizers(["lower", "whisper_english"]), where="d")


def test_characters_that_a_model_cannot_write_are_named(tmp_path):
    path = tmp_path / "dev.jsonl"
    rows = [
        {"audio_filepath": "a", "duration": 1, "text": text, "id": f"u{i}"} for i, text in enumerate(["ab", "éx", "é"])
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(Notice) as caught:
        warn_of_unseen(CharTokenizer(characters="ab", normalizer="none"), read_manifest(path), where=str(path))
    [warning] = caught
    assert str(warning.message) == (
        f"{path}: 2 characters are not in the vocabulary: 'é' U+00E9 x2 (first in u1 at {path}:2); "
        f"'x' U+0078 x1 (first in u1 at {path}:2). The model cannot write them, so they count as errors."
    )


@pytest.mark.filterwarnings("error")
def test_texts_that_a_model_can_write_give_no_warning(tmp_path):
    path = tmp_path / "dev.jsonl"
    path.write_text('{"audio_filepath": "a", "duration": 1, "text": "ab"}\n')
    warn_of_unseen(CharTokenizer(characters="ab", normalizer="none"), read_manifest(path), where="d")


# Several references -------------------------------------------------------------------------------------------------

SEVERAL = Utterance("u", "a.wav", 1.0, text="ab", references=("aa", "bb ba"))


def written(tmp_path, *rows):
    path = tmp_path / "m.jsonl"
    shared = {"audio_filepath": "a.wav", "duration": 1}
    path.write_text("".join(json.dumps(shared | {"id": f"u{i}"} | row) + "\n" for i, row in enumerate(rows)))
    return path


def test_a_line_may_have_several_references(tmp_path):
    rows = [{"text": "a"}, {"text": "a", "references": ["b", "a", "c"]}, {"references": ["b", "b", "c"], "lang": "en"}]
    path = written(tmp_path, *rows)
    for _ in range(2):  # from the lines, then from their index
        manifest = read_manifest(path)
        assert [one.texts for one in manifest] == [("a",), ("a", "b", "c"), ("b", "c")]
        assert not any("references" in one.tags for one in manifest)
    assert list(all_references(manifest))[-2:] == [("b", "en"), ("c", "en")]


@pytest.mark.parametrize("wrong", ["a", [], [1], ["a", None], {"a": "b"}, ["\ud800"], 3])
def test_references_that_are_no_list_of_texts_are_refused(tmp_path, wrong):
    with pytest.raises(ManifestError, match=r"m.jsonl:1: 'references' is .*, expected a list of one or more strings"):
        read_manifest(written(tmp_path, {"text": "a", "references": wrong}))


def test_a_line_without_text_and_references_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="has no 'text'"):
        read_manifest(written(tmp_path, {"references": None}))


def test_variants_have_one_text_each():
    assert [(one.text, one.references) for one in SEVERAL.variants()] == [("ab", ()), ("aa", ()), ("bb ba", ())]
    [single] = replace(SEVERAL, references=()).variants()
    assert single.text == "ab"


TOKENIZER = CharTokenizer(characters=" ab", normalizer="none")


@pytest.mark.parametrize(
    ("references", "limits", "reason"),
    [
        ((), {}, None),
        (("b",), {}, None),
        ((" ",), {}, "empty_text"),
        (("b" * 9,), {"max_tokens": 8}, "too_many_tokens"),
        # Four labels and three blanks between equal ones.
        (("b", "bbbb"), {"ctc_frames": lambda _: 6}, "ctc_target_too_long"),
        (("b", "bbbb"), {"ctc_frames": lambda _: 7}, None),
    ],
)
def test_limits_hold_for_every_reference(references, limits, reason):
    fault = fault_of(replace(SEVERAL, references=references), Limits(**limits), TOKENIZER)
    assert (None if fault is None else fault.reason) == reason


def test_every_reference_counts_for_vocabularies(tmp_path):
    path = written(tmp_path, {"text": "ab", "references": ["ac d"]})
    manifest = read_manifest(path)
    assert CharTokenizer.from_texts(manifest, normalizer="none").state()["characters"] == [" ", "a", "b", "c", "d"]
    with pytest.raises(ManifestError, match="2 characters are not in the vocabulary: 'c' U\\+0063 x1"):
        check_coverage(TOKENIZER, manifest, where="train")
    assert [one.text for one in read_sentences([path], normalizer="none")] == ["ab", "ac d"]


def test_longest_reference_counts_when_utterances_are_joined():
    rows = [replace(SEVERAL, id=str(i), tags={"speaker": "s"}) for i in range(2)]

    def units(most):
        targets = count_targets(rows, TOKENIZER)
        made = Concatenation(rows, limits=Limits(max_tokens=most), targets=targets, longest_s=9.0, seed=0)
        return made.units(np.ones(2), np.arange(2), 0)

    # Two references of five characters, each followed by a space.
    assert (len(units(11)), len(units(12))) == (2, 1)
    assert joined(rows).references == ()


def test_draws_are_even_and_depend_on_seed_epoch_and_id_only():
    drawn = [drawn_reference(SEVERAL, seed=3, epoch=epoch) for epoch in range(300)]
    assert {one.references for one in drawn} == {()}
    assert all(70 <= count <= 130 for count in Counter(one.text for one in drawn).values())
    assert drawn == [drawn_reference(SEVERAL, seed=3, epoch=epoch) for epoch in range(300)]
    for other in ({"seed": 4}, {"id": "v"}):
        again = replace(SEVERAL, id=other.get("id", "u"))
        texts = [drawn_reference(again, seed=other.get("seed", 3), epoch=epoch).text for epoch in range(300)]
        assert texts != [one.text for one in drawn]
    single = replace(SEVERAL, references=())
    assert drawn_reference(single, seed=0, epoch=0) is single


def test_training_draws_references_and_evaluation_has_the_first(config, tmp_path):
    """The same targets with 0 and 2 workers, on 1 and 2 ranks, and after a resume within the epoch."""
    path = tmp_path / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for name in ("train", "dev"):
        own = [row | {"id": f"{name}-{i}", "references": ["b", "aab"]} for i, row in enumerate(rows)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    config = replace(config, test={}, max_leakage=1.0)

    def texts(loader):
        return {one.id: one.text for batch in loader for one in batch.utterances}

    def epoch(number, workers=0, rank=0, world_size=1, start=0):
        data = data_of(replace(config, num_workers=workers), epoch=number)
        data.trainer = SimpleNamespace(current_epoch=number, global_rank=rank, world_size=world_size)
        loader = data.train_dataloader()
        loader.load_state_dict({"epoch": number, "batches": start})
        return texts(loader)

    whole = epoch(1)
    assert set(whole.values()) == {"ab", "b", "aab"}
    assert whole != epoch(2)
    assert epoch(1, workers=2) == whole
    assert epoch(1, rank=0, world_size=2) | epoch(1, rank=1, world_size=2) == whole
    rest = epoch(1, start=1)
    assert 0 < len(rest) < len(whole)
    assert rest.items() <= whole.items()
    [dev] = data_of(config).val_dataloader()
    assert set(texts(dev).values()) == {"ab"}
    batch = next(iter(dev))
    assert batch.utterances[0].references == ("b", "aab")
