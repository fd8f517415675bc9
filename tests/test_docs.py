"""The documentation is true: commands compose, examples run, and every file and link exists."""

import json
import os
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest

from ssl_asr.__main__ import COMMANDS as SUBCOMMANDS
from ssl_asr.config.arguments import read_words
from ssl_asr.config.check import preflight

REPO = Path(__file__).parent.parent
DOCS = [
    "README.md",
    "conf/README.md",
    "conf/experiment/README.md",
    "CHANGELOG.md",
    *(f"tests/{name}README.md" for name in ("", "benchmarks/", "gpu/", "mutation/")),
]
TEXTS = {name: (REPO / name).read_text() for name in DOCS}
README = TEXTS["README.md"]
STARTS = ("python -m ssl_asr.train", "ssl-asr ")
MOST_README_BYTES = 10_240
# Paths that runs or users write.
WRITTEN_LATER = {"tests/benchmarks/results/", "conf/local/default.yaml"}


def blocks(text, *languages):
    """Contents of the code blocks in one of the languages."""
    return re.findall(rf"^ *```(?:{'|'.join(languages)})\n(.*?)^ *```", text, flags=re.DOTALL | re.MULTILINE)


def lines(text):
    """Lines of the shell blocks, with continued lines joined."""
    joined = "\n".join(blocks(text, "bash", "sh")).replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip()]


def section(text, title):
    """The text between a heading and the next one of the same level."""
    [found] = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", text, flags=re.DOTALL | re.MULTILINE)
    return found


COMMANDS = sorted({line for text in TEXTS.values() for line in lines(text) if line.startswith(STARTS)})
YAML_COMMANDS = sorted(
    {
        line.lstrip("# ").strip()
        for path in (REPO / "conf").rglob("*.yaml")
        for line in path.read_text().splitlines()
        if line.lstrip("# ").startswith(STARTS)
    }
    - set(COMMANDS)
)


def _words(command):
    """The name of a command and its arguments."""
    words = shlex.split(command, comments=True)
    return ["train", *words[3:]] if words[0] == "python" else words[1:]


def _check(command):
    name, *given = _words(command)
    if name.startswith("-"):
        assert name in ("--help", "--version"), command
        return
    assert name in SUBCOMMANDS, command
    given = [word for word in given if word not in ("--help", "--cfg", "job")]
    data = ("data.train=", "data=", "experiment=an4", "experiment=librispeech")
    if name == "train" and not any(word.startswith(data) for word in given):
        given = ["data.train=train.jsonl", "data.dev=dev.jsonl", *given]
    if name in ("lm", "tune_decoding"):
        # Commands before it have made the file.
        given.append("overwrite=true")
    words = read_words(name, given)
    preflight(name, [*words.flags, *words.overrides])


def _write_extension(folder):
    """The files of the README's example of an extension, each named in its first line."""
    for block in blocks(section(README, "Extending"), "python", "yaml"):
        name = re.match(r"# (\S+)", block).group(1)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(block)


@pytest.fixture
def made_before(tmp_path, monkeypatch):
    """A folder with the files that commands name and that users or other commands write."""
    monkeypatch.setenv("SSL_ASR_DATA", os.environ.get("SSL_ASR_DATA", str(REPO.parent / "shared" / "data")))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # Composing `push=` looks for this setting, and nothing else of the Hub.
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "lm.arpa").touch()
    (tmp_path / "lexicon.txt").touch()
    (tmp_path / "outputs/2026-01-01/12-00-00").mkdir(parents=True)
    beam = (REPO / "conf" / "decoder" / "ctc_beam.yaml").read_text()
    (tmp_path / "decoder.yaml").write_text(beam)
    _write_extension(tmp_path)


@pytest.mark.usefixtures("made_before")
@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_of_the_documentation_composes(command):
    _check(command)


@pytest.mark.usefixtures("made_before")
@pytest.mark.parametrize("command", YAML_COMMANDS, ids=str)
def test_every_command_in_a_config_composes(command):
    _check(command)


def test_there_are_commands_to_check():
    assert len(COMMANDS) >= 40
    assert len(YAML_COMMANDS) >= 8


def test_the_two_main_commands_are_in_the_readme():
    assert any(
        line.startswith("python -m ssl_asr.train backbone=whisper_medium freeze=false") for line in lines(README)
    )
    sweep = "python -m ssl_asr.train -m backbone=wav2vec2_base,wavlm_base_plus freeze=true,false"
    assert any(line.startswith(sweep) for line in lines(README))
    assert {"make demo", "make test"} <= {line.partition("#")[0].strip() for line in lines(README)}


def test_every_make_target_named_exists():
    targets = set(re.findall(r"^([a-z-]+):", (REPO / "Makefile").read_text(), flags=re.MULTILINE))
    named = {found for text in TEXTS.values() for found in re.findall(r"\bmake ([a-z-]+)", "\n".join(lines(text)))}
    named |= {found for text in TEXTS.values() for found in re.findall(r"`make ([a-z-]+)`", text)}
    assert len(named) >= 3
    assert named <= targets


def test_every_extra_named_exists():
    extras = set(tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    lists = [found for text in TEXTS.values() for found in re.findall(r"ssl_asr\[([\w,]+)\]", text)]
    named = {name for found in lists for name in found.split(",")}
    assert named
    assert named <= extras


def test_every_fault_has_tests_that_exist():
    """A row without tests, or with one that was renamed, fails. A name without a path is of the file before it."""
    text, _, _ = TEXTS["tests/README.md"].partition("## Random input")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    faults = [row for row in rows if not set(row[0]) <= {"-"} and row[0] not in ("#", "fault")]
    assert [row[0] for row in faults if row[0].isdecimal()] == [str(number) for number in range(1, 41)]
    assert len(faults) >= 40 + 14
    for row in faults:
        names = re.findall(r"`([\w/]*(?:\.py)?)::(test_\w+)`", row[-1])
        assert names, row
        file = ""
        for path, name in names:
            file = path or file
            assert re.search(rf"^def {name}\(", (REPO / "tests" / file).read_text(), re.MULTILINE), f"{file}::{name}"


def test_every_row_named_is_in_the_gpu_table():
    from tests.gpu.bench import ROWS

    named = [
        word
        for text in TEXTS.values()
        for line in lines(text)
        if line.startswith("python -m tests.gpu.bench")
        for word in line.split()[3:]
    ]
    assert named
    assert set(named) <= set(ROWS)


def test_the_readme_is_short():
    assert len(README.encode()) <= MOST_README_BYTES


@pytest.mark.parametrize("name", DOCS)
def test_every_file_named_exists(name):
    named = set(re.findall(r"`((?:ssl_asr|conf|tests|notebooks)/[\w./]*)`", TEXTS[name]))
    for path in named - WRITTEN_LATER:
        assert (REPO / path).exists(), path


@pytest.mark.parametrize("name", DOCS)
def test_every_link_leads_to_a_file_and_a_heading(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (REPO / name).parent / path if path else REPO / name
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def test_the_file_tree_is_complete():
    """Every path exists, and every package of ssl_asr has a line."""
    [tree] = blocks(section(README, "Files"), "text")
    named, folders = set(), []
    for line in tree.splitlines():
        depth, path = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        folders[depth:] = [path.rstrip("/")]
        named.add("/".join(folders))
    assert len(named) > 15
    for path in named:
        assert (REPO / path).exists(), path
    packages = {path.parent for path in (REPO / "ssl_asr").glob("*/*.py")}
    assert {path.relative_to(REPO).as_posix() for path in packages} <= named


def test_every_python_example_compiles():
    examples = [block for text in TEXTS.values() for block in blocks(text, "python")]
    assert len(examples) >= 2
    for example in examples:
        compile(example, "README.md", "exec")


SMALL = {
    "train": ["data.num_workers=0"],
    "evaluate": ["num_workers=0"],
    "transcribe": [],
}


def _run_all(run_command, commands, folder, more):
    """Run commands of the documentation on the toy corpus. Returns their names."""
    seen = []
    for name, *arguments in map(_words, commands):
        given = [word.replace("recording.wav", "test0.wav") for word in arguments]
        done = run_command(name, *given, *SMALL[name], *more.get(name, []), cwd=folder)
        assert done.returncode == 0, done.stderr[-2000:]
        seen.append(name)
    return seen


@pytest.fixture
def own_data(toy_corpus, tmp_path):
    """A folder with train.jsonl, dev.jsonl and test.jsonl."""
    for path in toy_corpus["train"].parent.iterdir():
        shutil.copy(path, tmp_path)
    return tmp_path


def test_the_first_run_on_ones_own_manifest(run_command, toy_checkpoints, own_data, monkeypatch, capsys):
    """The README's sections on own data and on Python, word for word, on a toy model."""
    first = blocks(section(README, "Your own data"), "bash")[1].replace("\\\n", " ")
    commands = [line.strip() for line in first.splitlines() if line.startswith(STARTS)]
    checkpoint = shutil.copytree(toy_checkpoints["whisper"], own_data / "whisper")
    generation = json.loads((checkpoint / "generation_config.json").read_text())
    # The heads that word times are computed from, as in real checkpoints.
    (checkpoint / "generation_config.json").write_text(json.dumps({**generation, "alignment_heads": [[1, 0]]}))
    more = {
        "train": [f"backbone.source={checkpoint}", "decoder.max_tokens_per_s=3"],
        "evaluate": ["max_tokens_per_s=3"],
    }
    assert _run_all(run_command, commands, own_data, more) == ["train", "evaluate", "transcribe"]
    shutil.copy(own_data / "test0.wav", own_data / "recording.wav")
    monkeypatch.chdir(own_data)
    [example] = blocks(section(README, "Decoding"), "python")
    exec(example, {})
    lines_of_words = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert all(float(start) <= float(end) for start, end, *_ in lines_of_words)


def test_the_extension_of_the_readme_trains_and_transcribes(run_command, toy_checkpoints, own_data):
    """The README's example of an extension, word for word, on a toy model."""
    _write_extension(own_data)
    commands = [line for line in lines(section(README, "Extending")) if line.startswith(STARTS)]
    more = {"train": [f"backbone.source={toy_checkpoints['wav2vec2_group']}", "trainer.max_epochs=1"]}
    assert _run_all(run_command, commands, own_data, more) == ["train", "transcribe"]
