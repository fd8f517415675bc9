"""Rows of results, written as soon as they are known, so that they survive a killed process."""

import json
import os
from pathlib import Path
from typing import Any

ROWS_FILE = "SSL_ASR_GPU_ROWS"
"""Environment variable with the path of the file that `add_row` appends to. Unset: rows are printed."""


def add_row(row: dict[str, Any]) -> None:
    """Append a row as one line of JSON, and flush it."""
    line = json.dumps(row, ensure_ascii=False)
    path = os.environ.get(ROWS_FILE)
    if path is None:
        print(line, flush=True)
        return
    with open(path, "a") as file:
        file.write(line + "\n")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a file. A last line that is still being written is left out."""
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
