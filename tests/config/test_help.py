"""Help, version, shown configs and completion: right, short, and without torch."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from ssl_asr.__main__ import COMMANDS
from ssl_asr.config import launch
from ssl_asr.config.completion import complete
from ssl_asr.config.help import defaults_of, descriptions, help_text
from ssl_asr.config.options import plain
from ssl_asr.config.schemas import SCHEMAS, known_keys
from tests.command_runner import REPO
from tests.config.options import GROUPS, resolved


@pytest.mark.parametrize("name", SCHEMAS)
def test_help_has_every_key_of_the_command_with_a_text(name):
    text = help_text(name, width=100)
    texts = descriptions(SCHEMAS[name])
    for key in known_keys(name):
        assert re.search(rf"(^|[ @.]){key}(=|\.encoder)", text, flags=re.MULTILINE), key
        assert texts[key].endswith("."), key
    assert max(len(line) for line in text.splitlines() if not line.startswith("  ssl-asr")) <= 110
    assert "Hydra" not in text
    assert "ssl-asr" in text.split("\n")[0]


@pytest.mark.parametrize("name", SCHEMAS)
def test_help_has_no_key_of_another_command(name):
    shown = {
        line.split("=")[0].strip() for line in help_text(name, width=100).splitlines() if re.match(r"  \w+=", line)
    }
    groups = {key.partition("@")[0].removeprefix("optional ") for key in defaults_of(name)}
    assert shown <= {*known_keys(name), *groups}


def test_help_of_train_lists_every_option():
    text = help_text("train", width=100)
    for options in GROUPS.values():
        for option in options:
            assert re.search(rf"\b{option}\b", text), option


def test_help_lists_options_of_other_folders(tmp_path, capsys, monkeypatch):
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "mine.yaml").write_text("{}")
    assert re.search(r"linear, mine, none", help_text("train", [tmp_path], width=100))
    for flags in (["--config-dir", str(tmp_path)], [f"hydra.searchpath=[file://{tmp_path}]"]):
        monkeypatch.setattr(sys, "argv", ["ssl-asr", "--help", *flags])
        launch.run("train", lambda: None)
        assert "mine" in capsys.readouterr().out


def test_shown_config_is_what_runs(monkeypatch, capsys):
    given = ["data.train=t.jsonl", "run_dir=r", "freeze=true", "data.test=[a/x.jsonl]"]
    shown = yaml.safe_load(launch.show_config("train", ["--cfg", "job", *given]))
    assert shown == plain(resolved(*given[2:]))
    assert shown["freeze_policy"] == {"_target_": "ssl_asr.models.freezing.FreezeEncoder"}
    assert shown["data"]["test"] == {"a_x": "a/x.jsonl"}
    monkeypatch.setattr(sys, "argv", ["ssl-asr", "--cfg", "job", *given])
    launch.run("train", lambda: None)
    assert yaml.safe_load(capsys.readouterr().out) == shown


def test_shown_config_marks_missing_values():
    shown = yaml.safe_load(launch.show_config("train", ["--cfg", "job"]))
    assert shown["data"]["train"] == "???"
    assert "auto" not in str(shown["freeze_policy"])
    assert "${" not in str(shown)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--version"], "ssl-asr "),
        (["--help"], "usage: ssl-asr COMMAND"),
        (["train", "--help"], "Fine-tune a pretrained speech model"),
        (["train", "--cfg", "job", "freeze=false"], "TrainAll"),
        (["--completion", "bash"], "complete -o default"),
        (["--complete", "ssl-asr tra"], "train"),
    ],
)
def test_what_only_shows_something_imports_no_torch(arguments, text):
    code = "import sys; from ssl_asr.__main__ import main; main(); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert text in done.stdout


def test_an_unknown_command_is_refused():
    done = subprocess.run([sys.executable, "-m", "ssl_asr", "trian"], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 2
    assert "Did you mean ssl-asr train?" in done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ssl-asr tr", ["train", "transcribe"]),
        ("ssl-asr train head=l", ["head=linear"]),
        ("ssl-asr train freeze", ["freeze=", "freeze_policy="]),
        ("ssl-asr train freeze=", ["freeze=true", "freeze=false"]),
        ("ssl-asr train optimizers.", ["optimizers.encoder.", "optimizers.rest."]),
        ("ssl-asr train optimizers.rest.l", ["optimizers.rest.lr=", "optimizers.rest.layer_decay="]),
        ("ssl-asr train head=dnn head.w", ["head.width="]),
        ("ssl-asr train backbone=whisper_tiny_en backbone.ta", ["backbone.tail_s="]),
        (
            "ssl-asr train -m backbone=hubert_base,wavlm_base",
            ["backbone=hubert_base,wavlm_base", "backbone=hubert_base,wavlm_base_plus"],
        ),
        ("python -m ssl_asr.train state_cache=d", ["state_cache=disk"]),
        ("python -m ssl_asr evaluate precision=32", ["precision=32-true"]),
        ("ssl-asr train --cf", ["--cfg"]),
        ("ssl-asr train data.train=t", []),
        ("ssl-asr train 'unfinished", []),
    ],
)
def test_completion(line, words):
    assert complete(line, list(COMMANDS)) == words


def test_bash_completes_with_the_script(tmp_path):
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash")
    program = tmp_path / "ssl-asr"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m ssl_asr "$@"\n')
    program.chmod(0o755)
    script = """
        eval "$(ssl-asr --completion bash)"
        complete -p ssl-asr
        try() { COMP_LINE="$1"; COMP_POINT=${#1}; COMPREPLY=(); _ssl_asr "$2" 2>/dev/null; echo "${COMPREPLY[*]}"; }
        try "ssl-asr train head=bi" ssl-asr
        try "ssl-asr compa" ssl-asr
        try "$PYTHON -m ssl_asr.train task=j" "$PYTHON"
        try "python other.py ta" python
    """
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPO),
        "PYTHON": sys.executable,
    }
    done = subprocess.run([bash, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.splitlines()[1:] == ["bilstm", "compare", "joint", ""]
