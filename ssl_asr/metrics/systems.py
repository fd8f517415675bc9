"""Names of systems that are compared: runs, evaluations and files of predictions."""

import re
from collections.abc import Sequence
from pathlib import Path

from ssl_asr.errors import ManifestError, UserError
from ssl_asr.textfiles import from_json

# The name of a folder that says when a command started, in a folder with the day.
_TIME = re.compile(r"\d\d-\d\d-\d\d")


def system_names(paths: Sequence[Path]) -> list[str]:
    """Names of runs, evaluations and files of predictions: the name of the folder, different for different folders.

    A folder that is named by a time and holds an evaluation has the name of the evaluated model. Equal names, other
    times, and names of jobs of a sweep, which are numbers, get the folders above them.

    Example:
        >>> system_names([Path("outputs/a/predictions/test.jsonl"), Path("outputs/b")])
        ['a', 'b']
        >>> system_names([Path("x/0"), Path("y/0")])
        ['x/0', 'y/0']
    """
    resolved = [path.resolve() for path in paths]
    folders = [path.parent.parent if path.parent.name == "predictions" else path for path in resolved]
    models = [_model_of(folder) if _TIME.fullmatch(folder.name) else "" for folder in folders]
    # Number of folders in each name.
    depths = [0 if model else _depth(folder) for model, folder in zip(models, folders, strict=True)]
    while True:
        names = [_name(*each) for each in zip(folders, models, depths, strict=True)]
        longer = [
            depth + (names.count(name) > 1 and depth < len(path.parts))
            for path, depth, name in zip(folders, depths, names, strict=True)
        ]
        if longer == depths:
            break
        depths = longer
    # Two files of one folder.
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, paths, strict=True)]


def _name(folder: Path, model: str, depth: int) -> str:
    end = "/".join(folder.parts[-depth:]) if depth else ""
    return f"{model} ({end})" if model and end else model or end


def _depth(folder: Path) -> int:
    return 2 if _TIME.fullmatch(folder.name) or folder.name.isdigit() else 1


def _model_of(folder: Path) -> str:
    """The name of the model that an evaluation notes in ``results.json``, or "" if there is none."""
    path = folder / "results.json"
    try:
        results = from_json(path.read_bytes(), str(path), error=ManifestError, remedy="")
    except (OSError, UserError):
        return ""
    about = results.get("run") if isinstance(results, dict) else None
    model = about.get("model") if isinstance(about, dict) else None
    if not isinstance(model, str):
        return ""
    return "/".join(Path(model).parts[-_depth(Path(model)) :])
