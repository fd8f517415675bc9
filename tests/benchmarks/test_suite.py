"""The suite of CPU benchmarks: turns, memory, checks and the table. Its smaller parts run on small shapes."""

import math

import pytest
import torch

from tests.benchmarks.suite import checkpoints, recognition
from tests.benchmarks.suite.__main__ import BEGIN, END, FOLDER, PARTS, table, write_table
from tests.benchmarks.suite.rows import Options, Row, closeness, in_turns, saved_mb

ROW = Row(id="B1", what="a", peer="b", ours=2.0, theirs=3.0, unit="ms", ratio=1.5, spread=(1.25, 1.75), check="equal")


def test_sides_take_turns_in_changing_order_after_one_turn_that_does_not_count(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr("tests.benchmarks.suite.rows.time.perf_counter", lambda: clock[0])

    def side(name, seconds):
        durations = iter(seconds)

        def step():
            order.append(name)
            clock[0] += next(durations)

        return step

    found = in_turns(side("ours", [100.0, 1.0, 2.0, 4.0]), side("theirs", [100.0, 2.0, 6.0, 4.0]), 3)
    assert "".join(name[0] for name in order) == "ottootto"
    assert found == (2.0, 4.0, 2.0, (1.0, 3.0))


def test_saved_tensors_are_counted_once_and_without_parameters():
    weight = torch.nn.Parameter(torch.ones(1000, 1000))
    x = torch.ones(250, 1000)
    # exp keeps its result, and so does the product that reads it.
    assert saved_mb(lambda: (x @ weight).exp() @ weight) == pytest.approx(2.0)


def test_results_that_differ_are_an_error():
    assert closeness("loss", torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.5]), limit=0.5).endswith("5.0e-01")
    with pytest.raises(AssertionError, match="loss differs by 0.5"):
        closeness("loss", torch.tensor([2.0]), torch.tensor([2.5]), limit=0.1)
    with pytest.raises(AssertionError, match="nan"):
        closeness("loss", torch.tensor([torch.nan]), torch.tensor([2.5]), limit=0.1)


def test_table_replaces_the_marked_section_only(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for _ in range(2):
        write_table(readme, table([ROW]))
    lines = readme.read_text().splitlines()
    assert lines[:2] == ["before", BEGIN]
    assert lines[-3:] == ["| B1 | a | b | 2 ms | 3 ms | 1.50 (1.25 to 1.75) | equal |", END, "after"]
    with pytest.raises(AssertionError, match="no section"):
        write_table(tmp_path / "other.md", []) if (tmp_path / "other.md").write_text("text") else None


def test_the_results_have_a_marked_section():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1


def test_stalls_are_gaps_between_updates_less_those_without_a_save(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(checkpoints.time, "perf_counter", lambda: clock[0])
    model, prepared = torch.nn.Linear(1, 1), []
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for _ in range(2)]

    def prepare(update):
        prepared.append(update)
        clock[0] += 100.0

    with checkpoints._Gaps(model, prepare) as gaps:
        for gap in (0.0, 1.0, 5.0, 1.5, 6.0):
            clock[0] += gap
            model(torch.ones(1)).backward()
            clock[0] += 10.0
            for optimizer in optimizers:
                optimizer.step()
    optimizers[0].step()
    assert gaps.seconds == [1.0, 5.0, 1.5, 6.0]
    assert gaps.stalls(2) == [3.75, 4.75]
    assert gaps.stalls(1) == [1.0, 5.0, 1.5, 6.0]
    assert prepared == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["B2", "B3", "B4", "B9", "B10", "B11", "B15", "B21", "B22", "B25", "P1"])
def test_part_runs_on_small_shapes(name):
    rows = PARTS[name](Options(pairs=1, quick=True))
    assert {row.id for row in rows} == {name}
    # On small shapes, what B25 measures is noise, of either sign.
    assert all(math.isfinite(row.ratio) for row in rows)


@pytest.mark.parametrize("name", ["B12", "B24"])
def test_part_runs_on_a_few_real_files(data_root, name):
    rows = PARTS[name](Options(pairs=1, quick=True))
    assert {row.id for row in rows} == {name}
    assert all(row.check.startswith(("waveform differs", "4 of 4 texts equal")) for row in rows)


@pytest.mark.slow
def test_fused_searches_write_the_texts_of_the_search_without_tables(data_root, monkeypatch):
    monkeypatch.delenv("BENCH_PEERS", raising=False)
    rows = PARTS["P2"](Options(pairs=1, quick=True))
    assert [row.peer for row in rows] == ["rows on the host"] * 2
    assert all(row.check.startswith("4 of 4 texts equal") for row in rows)


def test_recognizers_have_equal_texts_and_error_rates_as_check():
    ours, peer = (recognition.Runner(name, "ours_ctc", {}) for name in ("ours", "peer"))
    ours.seconds, ours.texts = 1.0, ["a b", "c d"]
    peer.seconds, peer.texts = 3.0, [" a b ", "c"]
    [row] = recognition._rows("B16", "search", [ours, peer], ["a b", "c d"], "lower")
    assert (row.peer, row.ratio) == ("peer", 3.0)
    assert row.check == "1 of 2 texts equal, WER 0.00 and 25.00 %"
