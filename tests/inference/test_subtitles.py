"""Which format is written, and to which files. tests/inference/formats has their content."""

import pytest

from ssl_asr.config.parts import SubtitleStyle
from ssl_asr.errors import ConfigError
from ssl_asr.inference.subtitles import format_of, write
from ssl_asr.metrics.report import Prediction
from ssl_asr.types import Word

WORDS = [Word("one", 0.5, 0.8, 0.9), Word("two", 1.0, 1.25, 0.5), Word('"three"', 3.0, 3.5, 0.7)]
ROW = Prediction("u1", "", 'one two "three"', -0.1, 4.0, "/talks/a.wav", words=WORDS)
LATER = Prediction("u2", "", "four", -0.2, 2.0, "/talks/a.wav", offset=3661.0, words=[Word("four", 0.25, 1.0, 0.4)])
PLAIN = Prediction("u3", "", "no times", -0.2, 2.5, "/talks/b.wav")


def test_subtitles_get_one_file_per_recording(tmp_path):
    elsewhere = Prediction("u4", "", "other", 0.0, 1.0, "/other/b.wav")
    write(tmp_path, [LATER, ROW, PLAIN, elsewhere], "srt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.srt", "other_b.srt", "talks_b.srt"]
    assert (tmp_path / "a.srt").read_text().index("one two") < (tmp_path / "a.srt").read_text().index("four")
    write(tmp_path / "one.srt", [ROW, LATER], "srt")
    with pytest.raises(ConfigError, match="2 recordings"):
        write(tmp_path / "two.srt", [ROW, PLAIN], "srt")
    assert not (tmp_path / "two.srt").exists()


def test_format_is_named_by_the_suffix_or_the_option():
    assert format_of(None, None) == "text"
    assert format_of("talk.TextGrid", None) == "textgrid"
    assert format_of("folder", "vtt") == "vtt"
    with pytest.raises(ConfigError, match="does not say which format to write"):
        format_of("talk.doc", None)


def test_files_have_the_style(tmp_path):
    write(tmp_path / "a.srt", [ROW], "srt", SubtitleStyle(max_line_width=3))
    assert "one\ntwo\n" in (tmp_path / "a.srt").read_text()
