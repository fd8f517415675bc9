"""Notebooks run from top to bottom, and what is stored with them is theirs. Their own assertions check the figures."""

import json
import re
import sys
import tomllib

import nbformat
import pytest

from tests import notebooks
from tests.notebooks import PATHS

NAMES = [
    "01_features",
    "02_own_audio",
    "03_whisper",
    "04_ctc",
    "05_freezing",
    "06_errors",
    "07_sweeps",
]
# Run briefly in `make test`. The others take more than ten seconds each.
BRIEF = ("01_features", "04_ctc", "06_errors")
MOST_BYTES = 600_000
# Absolute paths, and what a failed cell or a library shows.
UNWANTED = re.compile(r"/(?:work|tmp|home|root|Users|usr|opt|var)/\w|site-packages|Traceback|Warning:|\x1b\[|\d+%\|")


def marked(path):
    return pytest.param(path, id=path.stem, marks=() if path.stem in BRIEF else pytest.mark.slow)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The working directory of short runs, which share the corpus."""
    return tmp_path_factory.mktemp("notebooks")


def read(path):
    return nbformat.read(path, as_version=4)


def outputs(notebook):
    return [out for cell in notebook.cells for out in cell.get("outputs", [])]


def pictures(notebook):
    return [out for out in outputs(notebook) if "image/png" in out.get("data", {})]


def test_there_are_seven_notebooks_and_each_is_listed():
    assert [path.stem for path in PATHS] == NAMES
    listed = re.findall(r"\]\((\w+)\.ipynb\)", (notebooks.FOLDER / "README.md").read_text())
    assert listed == NAMES


@pytest.mark.usefixtures("whisper_tiny_en")
@pytest.mark.parametrize("path", [marked(path) for path in PATHS])
def test_a_short_run_of_all_cells_succeeds(path, run_command, folder):
    done = run_command("--short", path.stem, module="tests.notebooks", cwd=folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.usefixtures("whisper_tiny_en")
def test_a_full_run_stores_its_outputs(data_root, tmp_path, monkeypatch):
    path = tmp_path / PATHS[0].name
    stripped = read(PATHS[0])
    for cell in stripped.cells:
        cell.get("outputs", []).clear()
    stripped.metadata.clear()
    nbformat.write(stripped, path)
    monkeypatch.setenv("SSL_ASR_DATA", str(data_root))
    notebooks.store(path, tmp_path)
    assert len(pictures(read(path))) == len(pictures(read(PATHS[0])))
    check_stored(path)


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_has_assertions_and_prose(path):
    notebook = read(path)
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert any("\nassert " in f"\n{source}" for source in code)
    assert notebook.cells[0].source.startswith("# ")
    assert sum(cell.cell_type == "markdown" for cell in notebook.cells) >= 5
    tags = [tag for cell in notebook.cells for tag in cell.metadata.get("tags", [])]
    assert tags == (["parameters"] if path.stem in notebooks.SHORT else [])


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_imports_come_with_the_package_and_its_extra(path):
    project = tomllib.loads((notebooks.REPO / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    needed = [*project["dependencies"], *extras["notebooks"], *extras["corpus"], *extras["dashboard"], *extras["lora"]]
    assert "ssl_asr[corpus,dashboard,lora]" in needed
    brought = {re.match(r"[\w-]+", one).group().lower() for one in needed} | {"ipython"}
    lines = [line for cell in read(path).cells if cell.cell_type == "code" for line in cell.source.splitlines()]
    imported = {found[1].lower() for line in lines if (found := re.match(r"(?:import|from) (\w+)", line))}
    assert imported - set(sys.stdlib_module_names) <= brought


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_stored_outputs_are_those_of_the_sources(path):
    check_stored(path)


def check_stored(path):
    """Outputs exist, belong to the sources, and have nothing of the machine that made them."""
    notebook = read(path)
    assert notebook.metadata["ssl_asr"]["code"] == notebooks.digest(notebook), "run: make notebooks"
    assert len(pictures(notebook)) >= 3
    assert path.stat().st_size <= MOST_BYTES
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert {out.output_type for out in outputs(notebook)} <= {"stream", "display_data", "execute_result"}
    for out in outputs(notebook):
        shown = {key: value for key, value in out.get("data", {}).items() if key != "image/png"}
        text = re.sub(r"base64,[\w+/=]+", "", json.dumps([out.get("text"), shown]))
        found = UNWANTED.search(text)
        assert found is None, text[max(0, found.start() - 60) : found.end() + 60]


def test_outputs_are_cleaned():
    def stream(name, text):
        return nbformat.v4.new_output("stream", name=name, text=text)

    def table(html):
        return nbformat.v4.new_output("display_data", data={"text/html": f'<pre style="a">{html}</pre>\n'})

    widget = {"application/vnd.jupyter.widget-view+json": {}}
    cell = nbformat.v4.new_code_cell(
        "print()",
        metadata={"execution": {"at": "1"}, "tags": ["parameters"]},
        outputs=[
            stream("stdout", "\x1b[1mfirst\x1b[0m /tmp/a/outputs/b\n"),
            stream("stderr", "site.py:1: TqdmWarning: IProgress not found\n  warn(\n"),
            stream("stderr", "recordings: 1 in\n"),
            table("one\n"),
            table(""),
            table("two\n"),
            nbformat.v4.new_output("display_data", data=widget),
        ],
        execution_count=7,
    )
    notebook = nbformat.v4.new_notebook(
        cells=[cell], metadata={"language_info": {"name": "python", "version": "3.11.7"}}
    )
    notebooks.clean(notebook, "/tmp/a")
    text, tables = cell.outputs
    assert text.text == "first outputs/b\nrecordings: 1 in\n"
    assert tables.data["text/html"] == '<pre style="a">one\ntwo\n</pre>\n'
    assert cell.execution_count == 1
    assert cell.metadata == {"tags": ["parameters"]}
    assert notebook.metadata["language_info"] == {"name": "python"}
    digest = notebook.metadata["ssl_asr"]["code"]
    cell.source = "print(1)"
    assert notebooks.digest(notebook) != digest
