"""Runs notebooks: in full in a kernel of their own, to store their outputs, or briefly in this process, as a test.

python -m tests.notebooks [NAME …]        # all, or those with these names, such as 03_whisper
python -m tests.notebooks --short NAME
"""

import argparse
import base64
import hashlib
import io
import os
import re
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).parent.parent
FOLDER = REPO / "notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
# Parameters of a short run, which tests that everything runs. They replace the cell with the tag `parameters`.
SHORT: dict[str, str] = {
    "02_own_audio": "clips, epochs = 24, 1",
    "03_whisper": "most, epochs, batch = {'train': 32, 'dev': 4, 'test': 8}, 2, 4",
    "04_ctc": "most, epochs = {'train': 32, 'dev': 4, 'test': 8}, 2",
    "05_freezing": "most, epochs = {'train': 32, 'dev': 4, 'test': 4}, 1",
    "06_errors": "most = {'test': 12}",
    "07_sweeps": "most, epochs = {'train': 16, 'dev': 4, 'test': 4}, 1",
}
# Speech of a short run without AN4. Nothing is downloaded in tests.
_SPOKEN = {"train": 48, "dev": 8, "test": 12}
_TIMEOUT_S = 3600
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_TIME = re.compile(r"^\[[\d:, -]+\](?=\[HYDRA\])", re.MULTILINE)
# Messages of libraries on standard error.
_NOISE = re.compile(
    r"TqdmWarning|IProgress|ipywidgets|autonotebook|Loading weights|kernels-community|^\s*(warn\(|warnings\.warn)|^\s*$"
)


def digest(notebook):
    """Digest of the code, which says whether the stored outputs are those of the cells."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\n\n".join(code).encode()).hexdigest()


def environment():
    """Variables of the environment for notebooks: where speech is, and no services."""
    shared = REPO.parent / "shared" / "data"
    data = {"SSL_ASR_DATA": str(shared)} if shared.is_dir() and "SSL_ASR_DATA" not in os.environ else {}
    return {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline", "TOKENIZERS_PARALLELISM": "false", **data}


def store(path, folder):
    """Run a notebook in full and store it with its outputs. Returns the seconds that it took.

    Args:
        path: Path of the notebook.
        folder: Working directory of the kernel.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    start = time.monotonic()
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=_TIMEOUT_S, kernel_name="python3", resources=place, record_timing=False).execute()
    seconds = time.monotonic() - start
    failed = [out for cell in notebook.cells for out in cell.get("outputs", []) if out.output_type == "error"]
    if failed:
        raise RuntimeError("\n".join(failed[0].traceback))
    clean(notebook, str(folder))
    nbformat.validate(notebook)
    nbformat.write(notebook, path)
    return seconds


def clean(notebook, folder):
    """Keep what a reader looks at: no escape codes, no messages of libraries, no widgets, no path of this machine."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
        "ssl_asr": {"code": digest(notebook)},
    }
    count = 0
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            cell.outputs = _joined([out for out in map(_cleaned, cell.outputs) if out is not None])
            for out in cell.outputs:
                _without(out, f"{folder}/")
                if "execution_count" in out:
                    out.execution_count = count


def _cleaned(out):
    """An output, or None if there is nothing to see in it."""
    if out.output_type == "stream":
        # Summaries of commands are on standard error, which Jupyter shows in red.
        lines = _ANSI.sub("", out.text).splitlines(keepends=True)
        out.name, out.text = "stdout", "".join(line for line in lines if not _NOISE.search(line))
        return out if out.text.strip() else None
    out.metadata = {}
    out.data.pop("application/vnd.jupyter.widget-view+json", None)
    if "image/png" in out.data or "text/html" in out.data:
        # Jupyter shows the richest form only.
        out.data.pop("text/plain", None)
    if "image/png" in out.data:
        out.data["image/png"] = _smaller(out.data["image/png"])
    # An audio player has no text.
    html = re.sub(r"<(?!audio)[^>]+>", "", out.data.get("text/html", "x"))
    return out if out.data and html.strip() and not _NOISE.search(html.split("\n")[0]) else None


def _joined(outputs):
    """Outputs with text after text, and tables of the console after tables of the console, as one output each."""
    kept = []
    for out in outputs:
        last = kept[-1] if kept else None
        if last is not None and out.output_type == last.output_type == "stream":
            last.text += out.text
        elif last is not None and _is_table(out) and _is_table(last):
            last.data["text/html"] = last.data["text/html"].rstrip().removesuffix("</pre>") + _table(out)
        else:
            kept.append(out)
    return kept


def _is_table(out):
    return out.get("data", {}).get("text/html", "").startswith("<pre style")


def _table(out):
    return out.data["text/html"].partition(">")[2]


def _smaller(png):
    """A picture with 256 colors, which has a third of the bytes."""
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        quantized = image.convert("RGB").quantize(256)
    buffer = io.BytesIO()
    quantized.save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def _without(out, folder):
    """Remove the working directory from the texts of an output, and name the folder of speech by its variable."""

    def shortened(text):
        data = os.environ.get("SSL_ASR_DATA")
        return text.replace(folder, "") if data is None else text.replace(folder, "").replace(data, "$SSL_ASR_DATA")

    for key in ("text/plain", "text/html"):
        if key in out.get("data", {}):
            out.data[key] = shortened(out.data[key])
    if "text" in out:
        out.text = shortened(_TIME.sub("", out.text))


def run_short(path):
    """Run the cells of a notebook in this process and the current folder, with the parameters of a short run.

    Raises:
        Exception: What a cell raised.
    """
    import matplotlib as mpl
    import nbformat
    from IPython.core.interactiveshell import InteractiveShell

    from ssl_asr.data.corpora import spoken, tutorial

    mpl.use("agg")
    tutorial.AN4 = "http://127.0.0.1:9/"
    tutorial._SPOKEN = spoken.CorpusSizes(**_SPOKEN)
    shell = InteractiveShell.instance(colors="nocolor")
    failed = []
    plain = shell.showtraceback

    def show(*arguments, **options):
        failed.append(True)
        plain(*arguments, **options)

    # The magic `%run` shows the error of a command and goes on.
    shell.showtraceback = show
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            is_parameters = "parameters" in cell.metadata.get("tags", [])
            source = SHORT[path.stem] if is_parameters else cell.source
            print(f"\n>>> {source}")
            done = shell.run_cell(source)
            if failed or not done.success:
                raise SystemExit(f"{path.name}: a cell failed")


def main():
    """See the description of this module."""
    parser = argparse.ArgumentParser(prog="python -m tests.notebooks")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--short", action="store_true")
    given = parser.parse_args()
    os.environ.update(environment())
    chosen = [path for path in PATHS if not given.names or path.stem in given.names]
    if given.short:
        for path in chosen:
            run_short(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in chosen:
            seconds = store(path, folder)
            print(f"{path.name}: {seconds:.0f} s, {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
