"""Messages of errors."""

import pytest

from ssl_asr.errors import ConfigError


@pytest.mark.parametrize(
    ("given", "written"),
    [("a\nb", r"a\nb"), ("\x1b[2Jé", r"\x1b[2Jé"), ("a\u2028b", r"a\u2028b"), ("a\x85b", r"a\x85b")],
)
def test_a_message_is_one_line(given, written):
    error = ConfigError(given, f"no such file: {given}", f"check {given}")
    assert str(error) == f"{written}: no such file: {written}. Check {written}."
    assert error.where == given
