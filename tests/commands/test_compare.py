"""``ssl-asr compare``: files that it reads are not replaced."""

import json

import pytest

from ssl_asr.commands.compare import compare
from ssl_asr.config.tools import CompareConfig
from ssl_asr.console import Notice
from ssl_asr.errors import ConfigError, ManifestError
from ssl_asr.metrics.report import Prediction
from ssl_asr.textfiles import to_json


def test_predictions_in_a_folder_are_not_overwritten(tmp_path):
    row = to_json(Prediction("u1", "one two", "one two", -0.1, 4.0, "/talks/a.wav").record())
    paths = [tmp_path / run / "predictions" / "test.jsonl" for run in ("first", "second")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.write_text(row + "\n")
    folders = {"first": str(tmp_path / "first"), "second": str(tmp_path / "second")}
    for path in paths:
        with pytest.raises(ConfigError, match=r"test\.jsonl is an input and would be overwritten"):
            compare(CompareConfig(**folders, output=str(path), verbose=False), tmp_path)
        assert path.read_text() == row + "\n"
    assert compare(CompareConfig(**folders, output=str(tmp_path / "new.json"), verbose=False), tmp_path) == 0.0


def _written(folder, hyps, split="test"):
    path = folder / "predictions" / f"{split}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [Prediction(f"u{n}", "one two three four", hyp, -0.1, 4.0, "a.wav") for n, hyp in enumerate(hyps)]
    path.write_text("".join(to_json(row.record()) + "\n" for row in rows))
    return str(folder)


def test_several_systems_are_ranked(tmp_path, capsys):
    right, wrong = "one two three four", "one two three x"
    hyps = {"a": [wrong] * 8, "b": [right] * 8, "c": [right] * 7 + [wrong]}
    first, second, third = (_written(tmp_path / name, some) for name, some in hyps.items())
    output = tmp_path / "ranking.json"
    names = {"first": first, "second": second, "others": [third]}
    assert compare(CompareConfig(**names, output=str(output)), tmp_path) == -0.25
    shown = capsys.readouterr().out
    assert "Holm" in shown
    found = json.loads(output.read_text())["test"]
    assert list(found) == ["lower", "whisper_english"]
    assert [(one["name"], one["wer"]) for one in found["lower"]["systems"]] == [("b", 0.0), ("c", 0.03125), ("a", 0.25)]
    assert [one["leader"] for one in found["lower"]["systems"]] == [True, True, False]
    compare(CompareConfig(**names, verbose=False), tmp_path)
    line = "test: WER b 0.00 %, c 3.12 %, a 25.00 %; leading: b, c (lower)"
    assert capsys.readouterr().out.splitlines()[0] == line


def test_several_systems_need_a_common_split(tmp_path):
    first, second = (_written(tmp_path / name, ["one"]) for name in "ab")
    _written(tmp_path / "a", ["one"], "dev")
    _written(tmp_path / "c", ["one"], "dev")
    third = _written(tmp_path / "c", ["one"], "other")
    config = {"first": first, "second": second, "others": [third], "verbose": False}
    with pytest.raises(ManifestError, match=r"no split is in all: .*a has dev, test; .*b has test; .*c has dev, other"):
        compare(CompareConfig(**config), tmp_path)
    with pytest.raises(ConfigError, match="others: .* is neither a predictions.jsonl nor a folder"):
        compare(CompareConfig(**(config | {"others": [str(tmp_path)]})), tmp_path)


def test_splits_that_are_not_compared_are_named(tmp_path):
    first, second = (_written(tmp_path / name, ["one"]) for name in "ab")
    for split in ("dev", "extra", "more"):
        _written(tmp_path / "b", ["one"], split)
    with pytest.warns(Notice, match="not compared, since not all systems have it: extra, more$"):
        compare(CompareConfig(first=first, second=second, verbose=False), tmp_path)
