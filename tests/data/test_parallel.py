"""Work in several processes gives the results, and the errors, of one."""

import os

import pytest

from ssl_asr.data import parallel
from ssl_asr.data.parallel import map_ranges, ranges_of
from ssl_asr.errors import ManifestError


@pytest.fixture
def several(monkeypatch):
    """Two CPUs, ranges of 7 items, and processes from 20 items on."""
    monkeypatch.setattr(parallel, "_RANGE", 7)
    monkeypatch.setattr(parallel, "_FEWEST", 20)
    monkeypatch.setattr(parallel.os, "sched_getaffinity", lambda _: {0, 1})


def test_ranges_cover_every_item_once(several):
    assert ranges_of(0) == []
    assert ranges_of(15) == [(0, 7), (7, 14), (14, 15)]


@pytest.mark.parametrize("count", [0, 6, 13, 50])
def test_results_are_in_order(several, count):
    items = [str(number) for number in range(count)]
    found = list(map_ranges(lambda start, end: (os.getpid(), items[start:end]), ranges_of(count)))
    assert [item for _, some in found for item in some] == items
    assert all((pid == os.getpid()) == (count < 20) for pid, _ in found)
    assert parallel._work is None


def test_errors_of_other_processes_are_raised_here(several):
    def work(start, _):
        if start == 21:
            raise ManifestError("m.jsonl:22", "is wrong", "write it right")
        return start

    with pytest.raises(ManifestError, match="m.jsonl:22: is wrong. Write it right"):
        list(map_ranges(work, ranges_of(50)))
    assert parallel._work is None
