"""The README is true: its commands compose, its files exist, and the first run is really run."""

import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from ssl_asr.config import launch
from ssl_asr.config.launch import name_arguments

REPO = Path(__file__).parent.parent
README = (REPO / "README.md").read_text()
BLOCKS = re.findall(r"```(?:bash|sh)\n(.*?)```", README, flags=re.DOTALL)
LINES = [line.strip() for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.strip()]
STARTS = ("python -m ssl_asr.train ", "ssl-asr ")
COMMANDS = sorted({line for line in LINES if line.startswith(STARTS)})
YAML_COMMANDS = sorted(
    {
        line.lstrip("# ").strip()
        for path in (REPO / "conf").rglob("*.yaml")
        for line in path.read_text().splitlines()
        if line.lstrip("# ").startswith(STARTS)
    }
)


def _words(command):
    """The name of a command and its arguments."""
    words = shlex.split(command, comments=True)
    return ["train", *words[3:]] if words[0] == "python" else words[1:]


def _check(command):
    name, *given = _words(command)
    given = [word for word in given if word != "--help"]
    if name == "train" and not any(word.startswith(("data.train=", "data=", "experiment=")) for word in given):
        given.append("data.train=train.jsonl")
    if name == "train" and "experiment=none" in given:
        given.append("data.train=train.jsonl")
    launch.preflight(name, name_arguments(given) if name == "compare" else given)


@pytest.fixture
def made_before(tmp_path, monkeypatch):
    """The files that commands name and other commands make."""
    monkeypatch.setenv("SSL_ASR_DATA", os.environ.get("SSL_ASR_DATA", str(REPO.parent / "shared" / "data")))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lm.arpa").touch()
    beam = (REPO / "conf" / "decoder" / "ctc_beam.yaml").read_text()
    (tmp_path / "decoder.yaml").write_text(beam)


@pytest.mark.usefixtures("made_before")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_composes(command):
    _check(command)


@pytest.mark.usefixtures("made_before")
@pytest.mark.parametrize("command", YAML_COMMANDS)
def test_every_command_in_a_config_composes(command):
    _check(command)


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 8
    assert len(YAML_COMMANDS) >= 8


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), flags=re.MULTILINE))
    named = {line.split()[1] for line in LINES if line.startswith("make ")}
    assert named
    assert named <= targets


def test_every_file_named_exists():
    named = set(re.findall(r"`((?:ssl_asr|conf|tests|notebooks)/[\w./]*)`", README))
    assert len(named) >= 8
    for name in named:
        assert (REPO / name).exists(), name


def test_the_first_run_on_ones_own_manifest(run_command, toy_checkpoints, toy_corpus, tmp_path):
    """The first block of the README's own-data section, word for word, on a toy model."""
    [section] = re.findall(r"## Your own data(.*?)\n## ", README, flags=re.DOTALL)
    commands = [
        _words(c)
        for block in re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)[:1]
        for c in block.replace("\\\n", " ").splitlines()
        if c.startswith(STARTS)
    ]
    for path in toy_corpus["train"].parent.iterdir():
        shutil.copy(path, tmp_path)
    small = {
        "train": [f"backbone.source={toy_checkpoints['whisper']}", "data.num_workers=0", "decoder.max_tokens_per_s=3"],
        "evaluate": ["num_workers=0", "max_tokens_per_s=3"],
        "transcribe": [],
    }
    seen = []
    for name, *arguments in commands:
        given = [w.replace("recording.wav", "test0.wav") for w in arguments]
        done = run_command(name, *given, *small[name], cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        seen.append(name)
    assert seen == ["train", "evaluate", "transcribe"]
