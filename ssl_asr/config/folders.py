"""The folders that configs are read from."""

from collections.abc import Sequence
from pathlib import Path


def config_folder() -> Path:
    """The ``conf`` folder: inside an installed package, beside it in a checkout."""
    package = Path(__file__).parent.parent
    return package / "conf" if (package / "conf").is_dir() else package.parent / "conf"


def option_names(group: str, folders: Sequence[Path] = ()) -> list[str]:
    """Names of the options of a config group, in our folder and in further ones."""
    found = {path.stem for folder in (config_folder(), *folders) for path in (folder / group).glob("*.yaml")}
    return sorted(found)
