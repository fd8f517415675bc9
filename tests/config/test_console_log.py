"""The console of a run in a file: what a terminal shows at the end, without what progress bars drew over."""

import io
import logging
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from ssl_asr.config.console_log import Screen, recorded, save_console
from ssl_asr.config.run_folder import forget_start


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        (["one\n", "two\n"], ["one", "two"]),
        (["\x1b[1mbold\x1b[0m \x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\\n"], ["bold link"]),
        (["10 %\r", "100 %\r", "\x1b[2K", "done\n"], ["done"]),
        # Two bars, which the next frame draws over.
        (["train 1\nval 1", "\r\x1b[2K\x1b[1A\x1b[2K", "text\ntrain 2\nval 2", "\r\x1b[2K\x1b[1A\x1b[2K"], ["text"]),
        (["abc\x1b[K\rX\n"], ["Xbc"]),
        (["a\n" * 300, "\x1b[1A\x1b[2Kb\n"], ["a"] * 299 + ["b"]),
        (["no end"], ["no end"]),
    ],
)
def test_file_has_the_lines_that_stand(tmp_path, written, shown):
    screen = Screen()
    screen.save_to(tmp_path / "a.log")
    for text in written:
        screen.write(text)
    screen.close()
    assert (tmp_path / "a.log").read_text().splitlines() == shown


def test_earlier_lines_are_kept_and_lines_before_the_file_are_written(tmp_path):
    path = tmp_path / "new" / "train.log"
    for text in ("first run\n", "resumed\n"):
        screen = Screen()
        screen.write(text)
        screen.save_to(path)
        screen.write("trains\n")
        screen.close()
    assert path.read_text() == "first run\ntrains\nresumed\ntrains\n"


def test_everything_printed_is_kept_but_bars(tmp_path, monkeypatch):
    """On a terminal: bars of rich, text above them, warnings on standard error, and a logger made before."""
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    handler = logging.StreamHandler(err)
    logging.getLogger("their_package").addHandler(handler)
    try:
        with recorded(on=True):
            console = Console(force_terminal=True, width=80)
            print("before")
            save_console(tmp_path / "train.log")
            with Progress(console=console, transient=True) as bar:
                one, two = bar.add_task("Epoch 1"), bar.add_task("Validating")
                for step in range(3):
                    bar.update(one, completed=step)
                    bar.update(two, completed=step)
                    bar.refresh()
                    console.print(f"[bold]update {step}[/]")
                    print(f"warning {step}", file=sys.stderr)
            logging.getLogger("their_package").warning("logged")
            print("after")
    finally:
        logging.getLogger("their_package").removeHandler(handler)
    assert sys.stdout is out
    assert handler.stream is err
    lines = (tmp_path / "train.log").read_text().splitlines()
    shown = [f"{word} {step}" for step in range(3) for word in ("update", "warning")]
    assert lines == ["before", *shown, "logged", "after"]
    assert "\x1b[1m" in out.getvalue()


def test_nothing_is_written_without_a_name(tmp_path):
    with recorded(on=True):
        print("refused")
    save_console(tmp_path / "train.log")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("is_new", "sign", "left"), [(True, None, []), (False, None, ["run"])])
def test_start_of_a_refused_command_is_removed(tmp_path, is_new, sign, left):
    hydra = tmp_path / "2026-01-01" / "run" / ".hydra"
    hydra.mkdir(parents=True)
    (hydra / "config.yaml").touch()
    forget_start(hydra.parent, is_new=is_new)
    assert [path.name for path in tmp_path.glob("*/*")] == left
    assert (tmp_path / "2026-01-01").exists() == bool(left)


def test_start_of_a_run_is_kept(tmp_path):
    (tmp_path / ".hydra").mkdir()
    (tmp_path / "config.yaml").touch()
    forget_start(tmp_path, is_new=True)
    assert (tmp_path / ".hydra").is_dir()
