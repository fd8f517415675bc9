"""Options with a default in their class have the same value in the YAML file that names the class."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from hydra.utils import get_class

CONFIGS = sorted((Path(__file__).parents[2] / "conf" / "decoder").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_defaults_of_classes_are_those_of_the_files(path):
    row = yaml.safe_load(path.read_text())
    option = get_class(row["_target_"])
    for field in dataclasses.fields(option):
        if field.default is not dataclasses.MISSING and field.name in row:
            assert row[field.name] == field.default, field.name
