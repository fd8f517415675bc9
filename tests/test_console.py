"""Tables under titles, progress bars, and warnings that are not shown."""

import io
import os
import warnings

import pytest
from rich.console import Console
from torch.utils.data import DataLoader

from ssl_asr.console import TitledTable, hush, shows_bars, tracked


def test_a_title_is_one_line_although_its_table_is_narrow():
    console = Console(record=True, width=80)
    table = TitledTable("One batch of 2 [utterances], 20 updates")
    table.add_column("loss")
    table.add_row("1.5")
    console.print(table)
    assert console.export_text().splitlines()[:2] == ["One batch of 2 [utterances], 20 updates", "┏━━━━━━┓"]


@pytest.mark.parametrize(("width", "shown"), [(15, "│ 12 │ 345678 │"), (13, "│12│345678│"), (8, "│12│345│")])
def test_a_narrow_table_loses_its_spaces_before_its_cells_wrap(width, shown):
    console = Console(record=True, width=width)
    table = TitledTable("")
    table.add_column("a", no_wrap=True)
    table.add_column("b")
    table.add_row("12", "345678")
    console.print(table)
    text = console.export_text()
    assert shown in text
    assert "…" not in text


def test_bars_leave_nothing_on_a_console_that_is_no_terminal():
    console = Console(file=io.StringIO(), force_terminal=False)
    assert list(tracked(range(3), "work", console=console)) == [0, 1, 2]
    assert console.file.getvalue() == ""
    assert not shows_bars(console)


@pytest.mark.parametrize("shown", [True, False])
def test_bars_are_shown_on_a_terminal_if_they_are_wanted(shown):
    console = Console(file=io.StringIO(), force_terminal=True, force_interactive=True)
    assert list(tracked(range(3), "work", console=console, shown=shown)) == [0, 1, 2]
    assert ("work" in console.file.getvalue()) == shown


def test_more_workers_than_cores_are_not_warned_of(monkeypatch, capsys):
    """The default number of workers is 2, also on a machine with one core."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        DataLoader([1, 2], num_workers=2)
        assert [str(one.message)[:32] for one in seen] == ["This DataLoader will create 2 wo"]
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        hush()
        DataLoader([1, 2], num_workers=2)
    assert capsys.readouterr().err == ""
