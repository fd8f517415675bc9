"""Numbers of recordings that go in, come out and are skipped."""

import io
import json

import pytest
from rich.console import Console

from ssl_asr.errors import ConfigError
from ssl_asr.inference.summary import Summary
from ssl_asr.types import Skip

SKIPS = [Skip("a", "m:1", "missing_file", "no such file"), Skip("b", "", "duplicate", "the same recording as c")]


def test_summary_counts_by_reason(tmp_path):
    summary = Summary(4, 2, [*SKIPS[:1], *SKIPS[:1]], ["d has other files: 1 .txt"])
    assert str(summary) == "recordings: 4 in, 2 out, 2 skipped (missing_file 2)"
    summary.write(tmp_path / "s.json")
    made = json.loads((tmp_path / "s.json").read_text())
    assert (made["in"], made["out"], made["skipped"]) == (4, 2, 2)
    assert made["reasons"] == {"missing_file": 2}
    assert made["skips"][0] == {"id": "a", "where": "m:1", "reason": "missing_file", "detail": "no such file"}
    assert made["notes"] == ["d has other files: 1 .txt"]


def test_a_lost_recording_is_an_error_of_the_framework():
    with pytest.raises(AssertionError, match="3 in, 2 out, 0 skipped"):
        Summary(3, 2, [])


def test_summary_prints_lines_and_a_table(tmp_path):
    said, table = io.StringIO(), Console(file=io.StringIO(), width=80)
    Summary(32, 1, [*SKIPS, *[SKIPS[0]] * 29], ["a note"]).show(table, tmp_path / "s.json", said)
    text = said.getvalue()
    assert text.count("skipped a: missing_file: no such file") == 20
    assert "skipped 10 more: missing_file: see" in text
    assert "skipped b: duplicate" in text
    assert "note: a note" in text
    assert text.endswith("recordings: 32 in, 1 out, 31 skipped (missing_file 30, duplicate 1)\n")
    assert "skipped, missing_file" in table.file.getvalue()
    everything = io.StringIO()
    Summary(31, 1, [SKIPS[0]] * 30).show(None, None, everything)
    assert everything.getvalue().count("skipped a") == 30


def test_nothing_out_is_an_error():
    with pytest.raises(ConfigError, match="nothing could be aligned"):
        Summary(1, 0, SKIPS[:1], key="manifest", verb="aligned").show(None, None, io.StringIO())
