"""``ssl-asr compare``: files that it reads are not replaced."""

import pytest

from ssl_asr.commands.compare import compare
from ssl_asr.config.tools import CompareConfig
from ssl_asr.errors import ConfigError
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
