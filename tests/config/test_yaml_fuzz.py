"""Random YAML as a file of settings: one line, or plain data.

`tests.fuzzing` says how to try more.
"""

import random

import pytest

from ssl_asr.config.check import preflight
from ssl_asr.config.nodes import _read_node
from ssl_asr.errors import ConfigError, UserError, UserErrors
from tests.fuzzing import fuzz, time_limit

WORDS = ["a", "_target_", "beam_size", "<<", "defaults", "_self_", "decoder", "null", "~", "true", "no", "1", "-1.5e3"]
WORDS += [
    "1_000",
    "0x1f",
    "2020-01-01",
    ".inf",
    ".nan",
    "é",
    "日本",
    "\ud800",
    "\0",
    "\x85",
    "\u2028",
    "\ufeff",
    "|",
    ">",
]
WORDS += [
    "${a}",
    "${",
    "${a.b:c}",
    "${oc.env:HOME}",
    "???",
    "*x",
    "&x",
    "!!python/object:os.system",
    "!t",
    "%",
    "@",
    "`",
]
WORDS += [
    "'",
    '"',
    "'a'",
    '"\\ud800"',
    "[",
    "]",
    "{",
    "}",
    "- ",
    "-",
    ": ",
    ":",
    "? ",
    "#",
    "---",
    "...",
    ",",
    "9" * 400,
]
WORDS += ["ssl_asr.decoding.ctc_beam.CtcBeam", "a: 1", "override /head: dnn", "x" * 300, "[" * 30, "{a: " * 30]
ENDS = ["\n", "\n", "\n  ", "\n    ", " ", "", "\t", "\r\n", "\n- "]
ENCODINGS = ["utf-8"] * 6 + ["utf-8-sig", "utf-16", "latin-1"]


def _yaml(draw):
    text = "".join(draw.choice(WORDS) + draw.choice(["", ": ", ": ", *ENDS]) for _ in range(draw.randint(0, 12)))
    encoding = draw.choice(ENCODINGS)
    return text.encode(encoding, errors="replace" if encoding == "latin-1" or draw.random() < 0.5 else "surrogatepass")


@pytest.fixture(scope="module")
def path(memory_folder):
    path = memory_folder / "experiment" / "odd.yaml"
    path.parent.mkdir()
    return path


def _check(error, start=""):
    assert str(error).startswith(start)
    assert "\n" not in str(error)
    assert len(str(error)) < 1000


@fuzz(parts=10)
def test_any_file_of_settings_is_plain_data_or_one_line(path, seed):
    path.write_bytes(_yaml(random.Random(seed)))
    with time_limit():
        try:
            node = _read_node(path, "decoder_file")
        except ConfigError as error:
            _check(error, start="decoder_file: ")
            return
    assert all(isinstance(key, str) for key in node)


def _composed(path, content):
    path.write_bytes(content)
    with time_limit():
        try:
            preflight("train", ["--config-dir", str(path.parent.parent), "data.train=no.jsonl", "experiment=odd"])
        except UserErrors as several:
            for error in several.errors:
                _check(error)
            return str(several)
        except UserError as error:
            _check(error)
            return str(error)
    return ""


@fuzz(parts=200)
def test_any_option_file_is_composed_or_refused(path, seed):
    _composed(path, _yaml(random.Random(seed)))


@pytest.mark.parametrize(
    "content",
    [
        b"a: [",
        b"- a\n- b\n",
        b"a",
        b"\xff",
        b"a: \0",
        b"[" * 5000,
        b"a: &x [*x]\n",
        b"a: !!python/object/apply:os.system [true]\n",
        b"defaults: 5\n",
        b"defaults: [[a]]\n",
        b"defaults:\n- override /head: [a]\n",
        b"defaults:\n- nothing\n",
        b"seed: ${\n",
        b"seed: ${seed}\n",
        b"1: 2\n",
        b"? [a, b]\n: c\n",
        b"trainer: 5\n",
    ],
)
def test_a_wrong_option_file_is_refused(path, content):
    if not content.startswith(b"defaults"):
        content = b"# @package _global_\n" + content
    message = _composed(path, content)
    assert message
    assert "Traceback" not in message
