"""Several systems on the same utterances, against a hand-written Holm correction and against comparisons of two."""

import json
import random
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ssl_asr.data.text import get_normalizer
from ssl_asr.errors import ManifestError
from ssl_asr.metrics.ranking import holm, print_rankings, rank
from ssl_asr.metrics.report import Prediction
from ssl_asr.metrics.significance import compare
from ssl_asr.metrics.systems import system_names
from tests.tables import cells, wide_console

LOWER = get_normalizer("lower")
ROWS = [Prediction(f"u{n:02}", "one two three four", "one two three four", 0.0, 1.0, "") for n in range(60)]


def _damaged(share, seed):
    draw = random.Random(seed)
    hyps = [" ".join("x" if draw.random() < share else word for word in row.hyp.split()) for row in ROWS]
    rows = [replace(row, hyp=hyp) for row, hyp in zip(ROWS, hyps, strict=True)]
    draw.shuffle(rows)
    return rows


SYSTEMS = [_damaged(0.3, 1), _damaged(0.02, 2), _damaged(0.03, 3), _damaged(0.32, 4)]


def test_holm_is_the_step_down_procedure():
    """A hypothesis is rejected at a level if its corrected p-value is below: the definition, one level at a time."""
    draw = random.Random(0)
    for _ in range(200):
        p = [draw.choice([0.0, 1.0, draw.random(), draw.random() / 50]) for _ in range(draw.randint(1, 9))]
        corrected = holm(p)
        for level in (0.01, 0.05, 0.2, draw.random()):
            rejected, left = set(), sorted(range(len(p)), key=lambda index: p[index])
            while left and p[left[0]] < level / len(left):
                rejected.add(left.pop(0))
            assert {index for index, one in enumerate(corrected) if one < level} == rejected


def test_each_pair_is_compared_as_two_systems_are():
    found = rank(SYSTEMS, "lower", LOWER)
    assert list(found.pairs) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    for (one, other), pair in found.pairs.items():
        assert pair == compare(SYSTEMS[one], SYSTEMS[other], LOWER)
    p = sorted(pair.p for pair in found.pairs.values())
    assert found.p(3, 2) == found.p(2, 3) == found.p_holm[2, 3]
    assert min(found.p_holm.values()) == pytest.approx(6 * p[0])


def test_the_leaders_are_those_that_cannot_be_told_from_the_best():
    found = rank(SYSTEMS, "lower", LOWER)
    wers = [score.wer for score in found.scores]
    assert found.order == sorted(range(4), key=wers.__getitem__) == [1, 2, 0, 3]
    assert found.leaders == [1, 2]
    record = found.record(["a", "b", "c", "d"])
    assert [(one["name"], one["rank"], one["leader"]) for one in record["systems"]] == [
        ("b", 1, True),
        ("c", 2, True),
        ("a", 3, False),
        ("d", 4, False),
    ]
    assert record["systems"][0]["wer"] == wers[1]
    assert record["pairs"][0]["names"] == ["a", "b"]
    assert record["pairs"][0]["p_holm"] == found.p_holm[0, 1]
    assert record["correction"] == "holm"


def test_equal_systems_share_the_lead_in_the_order_given():
    found = rank([SYSTEMS[1], SYSTEMS[1], SYSTEMS[1]], "lower", LOWER)
    assert (found.order, found.leaders) == ([0, 1, 2], [0, 1, 2])


def test_tables_have_the_order_and_the_matrix():
    console = wide_console()
    found = rank(SYSTEMS, "lower", LOWER)
    print_rankings("test", {"lower": found}, ["a", "b", "c", "d"], console)
    rows = cells(console)
    assert [row[1] for row in rows[:4]] == ["b", "c", "a", "d"]
    assert [row[-1] for row in rows[:4]] == ["yes", "yes", "no", "no"]
    difference = 100 * (found.scores[2].wer - found.scores[1].wer)
    assert rows[4][:3] == ["1 b", "", f"{difference:+.2f}"]


def test_tables_of_many_systems_are_not_cut_on_80_columns():
    console = Console(record=True, width=80)
    names = [f"outputs/evaluation-of-system-{n}" for n in range(12)]
    print_rankings("test", {"lower": rank([SYSTEMS[n % 4] for n in range(12)], "lower", LOWER)}, names, console)
    shown = console.export_text()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    # Pairs of different systems, in both directions: 0.3 and 0.02, and so on.
    assert len(re.findall(r"[+-]\d+\.\d\d(?!\d)", shown)) == 12 * 11


@pytest.mark.parametrize("other", [ROWS[:3], [*ROWS[:-1], replace(ROWS[-1], ref="changed")]])
def test_utterances_that_not_all_have_are_refused(other):
    with pytest.raises(ManifestError, match=r"files 1 and 3.*same manifest"):
        rank([ROWS, SYSTEMS[0], other], "lower", LOWER)


def test_names_have_the_folders_that_tell_them_apart():
    paths = [Path("x/0/predictions/test.jsonl"), Path("y/0"), Path("y/1")]
    assert system_names(paths) == ["x/0", "y/0", "y/1"]
    assert system_names([Path("2026-11-28/10-19-03")]) == ["2026-11-28/10-19-03"]
    files = [Path("x/predictions/dev.jsonl"), Path("x/predictions/test.jsonl")]
    assert system_names(files) == [str(path) for path in files]


def test_evaluations_in_folders_of_times_are_named_by_their_models(tmp_path):
    def evaluation(time, results):
        folder = tmp_path / "evaluate" / "2026-11-28" / time
        (folder / "predictions").mkdir(parents=True)
        (folder / "results.json").write_text(results)
        return folder

    models = ["outputs/mine", "openai/whisper-tiny.en", "outputs/2026-11-27/11-00-00", "mine"]
    texts = [json.dumps({"run": {"model": model}}) for model in models]
    mine, tiny, dated, again = (evaluation(f"10-00-0{n}", text) for n, text in enumerate(texts))
    assert system_names([mine, tiny / "predictions" / "test.jsonl"]) == ["mine", "whisper-tiny.en"]
    assert system_names([mine, dated]) == ["mine", "2026-11-27/11-00-00"]
    assert system_names([mine, again, tiny]) == ["mine (10-00-00)", "mine (10-00-03)", "whisper-tiny.en"]
    damaged = [evaluation("11-00-00", "{"), evaluation("11-00-01", '{"run": {"model": null}}')]
    assert system_names(damaged) == ["2026-11-28/11-00-00", "2026-11-28/11-00-01"]
