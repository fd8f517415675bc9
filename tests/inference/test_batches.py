"""`Transcripts`: predictions and skipped utterances by name of their manifest."""

from ssl_asr.inference.batches import Transcripts
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import Skip


def prediction(utterance_id):
    return Prediction(utterance_id, "a reference", "a hypothesis", -0.5, 1.0, f"{utterance_id}.wav")


def skip(utterance_id):
    return Skip(utterance_id, f"test.jsonl:{utterance_id}", "too_long", "40 s")


def test_adding_transcripts_extends_known_names_and_adds_new_ones():
    short = Transcripts({"clean": [prediction("a")], "noisy": [prediction("b")]}, {"clean": [skip("c")]})
    long = Transcripts({"clean": [prediction("d")], "far": [prediction("e")]}, {"clean": [skip("f")], "far": []})
    short.add(long)
    assert {name: [p.id for p in rows] for name, rows in short.predictions.items()} == {
        "clean": ["a", "d"],
        "noisy": ["b"],
        "far": ["e"],
    }
    assert {name: [s.id for s in rows] for name, rows in short.skips.items()} == {"clean": ["c", "f"], "far": []}
    assert [p.id for p in long.predictions["clean"]] == ["d"], "the added transcripts do not change"


def test_adding_to_empty_transcripts_does_not_share_lists():
    total, part = Transcripts(), Transcripts({"test": [prediction("a")]}, {"test": [skip("b")]})
    total.add(part)
    total.add(Transcripts({"test": [prediction("c")]}, {"test": [skip("d")]}))
    assert [p.id for p in total.predictions["test"]] == ["a", "c"]
    assert [p.id for p in part.predictions["test"]] == ["a"]
    assert [s.id for s in part.skips["test"]] == ["b"]


def test_renamed_transcripts_have_a_suffix_on_every_name():
    rows, skips = [prediction("a")], [skip("b")]
    transcripts = Transcripts({"clean": rows, "noisy": []}, {"clean": skips, "far": []})
    renamed = transcripts.renamed("_best")
    assert renamed == Transcripts({"clean_best": rows, "noisy_best": []}, {"clean_best": skips, "far_best": []})
    assert list(transcripts.predictions) == ["clean", "noisy"], "the original keeps its names"
