"""``ssl-asr dashboard``: a W&B workspace with panels for speech recognition."""

from pathlib import Path
from typing import TYPE_CHECKING

from ssl_asr.config.tools import DashboardConfig

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace


def dashboard(config: DashboardConfig, folder: Path) -> float | None:  # noqa: ARG001
    """Save the workspace in W&B, or write it to a file.

    Raises:
        ConfigError: A package or an API key is missing.
    """
    from ssl_asr.errors import optional_import
    from ssl_asr.textfiles import to_json, written_whole

    with optional_import("ssl-asr dashboard", "wandb-workspaces", "dashboard"):
        from ssl_asr.training.workspace import make_workspace, workspace_record
    output = None if config.output is None else Path(config.output)
    entity = config.entity or ("" if output is not None else _default_entity())
    workspace = make_workspace(entity=entity, project=config.project, name=config.name, splits=config.splits)
    if output is not None:
        with written_whole(output) as file:
            file.write(to_json(workspace_record(workspace), indent=1) + "\n")
        print(f"the workspace is in {output}")
    else:
        print(f"the workspace is at {_saved(workspace)}")
    return None


def _default_entity() -> str:
    from ssl_asr.errors import ConfigError
    from ssl_asr.training.wandb import default_entity, has_key

    if not has_key():
        remedy = "run wandb login, or set WANDB_API_KEY, or write the workspace to a file with output=workspace.json"
        raise ConfigError("output", "is not given, and there is no API key for W&B", remedy)
    return default_entity()


def _saved(workspace: "Workspace") -> str:
    """The address of the workspace in W&B."""
    return str(workspace.save().url)
