"""conf/experiment/README.md is true: it has every setting of the recipes it compares, and the values that are composed.

peer_options.yaml has the names of the settings in the files of other toolkits, and where they are from. For another
version of a file, replace its names; the test then says which rows are missing.
"""

import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from ssl_asr.config.nodes import register_schemas
from ssl_asr.config.resolve import resolve
from tests.config.options import CONF, GROUPS, NEEDED

TEXT = (CONF / "experiment" / "README.md").read_text(encoding="utf-8")
PEERS = yaml.safe_load((Path(__file__).parent / "peer_options.yaml").read_text(encoding="utf-8"))
ROW = re.compile(r"(?<!\\)\|")
# The ten recipes of fairseq have one table.
TABLE_OF = {"fairseq": "fairseq_base_100h"}
DATA = ["data.dev=d.jsonl"]


def _cells(line):
    return [cell.strip().strip("`").replace("\\|", "|") for cell in ROW.split(line.strip())[1:-1]]


def _tables(section):
    """The tables of a section: each a list of rows, the head first."""
    found = re.findall(r"(?:^\|.*\n)+", section, flags=re.MULTILINE)
    return [[_cells(line) for i, line in enumerate(table.splitlines()) if i != 1] for table in found]


SECTIONS = {
    title: _tables(body) for title, body in re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE)
}
ROWS = [(name, *row) for name, tables in SECTIONS.items() if tables for row in tables[0][1:]]


@cache
def _composed(experiment):
    """The composed values of an experiment, and the option of each group."""
    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("train", [*NEEDED, *DATA, f"experiment={experiment}"], return_hydra_config=True)
    choices = dict(config.hydra.runtime.choices)
    OmegaConf.set_struct(config, False)
    del config["hydra"]
    resolve(config)
    return config, choices


def _here(experiment, key):
    config, choices = _composed(experiment)
    if key == "audio_augment":
        return list(config.audio_augment)
    if key in choices:
        return choices[key]
    missing = object()
    value = OmegaConf.select(config, key, default=missing, throw_on_missing=True)
    assert value is not missing, f"{experiment}: no key {key}"
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def test_every_experiment_with_a_published_file_has_a_table():
    assert {TABLE_OF.get(name, name) for name in PEERS} == {name for name, tables in SECTIONS.items() if tables}
    assert set(SECTIONS) <= set(GROUPS["experiment"])
    named = set(re.findall(r"`(\w+)`", TEXT)) | set(SECTIONS)
    unnamed = set(GROUPS["experiment"]) - named - {"none"}
    assert not {name for name in unnamed if not name.startswith(("fairseq", "an4"))}


@pytest.mark.parametrize("name", PEERS)
def test_every_setting_of_a_recipe_has_a_row(name):
    rows = [row[0] for row in SECTIONS[TABLE_OF.get(name, name)][0][1:]]
    names = PEERS[name]["names"]

    def covers(row, setting):
        return setting == row or (row.endswith(".*") and setting.startswith(row[:-1]))

    assert [setting for setting in names if not any(covers(row, setting) for row in rows)] == []
    assert [row for row in rows if not any(covers(row, setting) for setting in names)] == []


@pytest.mark.parametrize("experiment", dict.fromkeys(row[0] for row in ROWS))
def test_the_keys_exist_and_have_the_values_of_the_table(experiment):
    wrong = []
    for _, there, _, key, value, note in (row for row in ROWS if row[0] == experiment):
        if key == "-":
            assert note, f"{there}: neither a key nor a reason"
            continue
        found = _here(experiment, key)
        if found != yaml.safe_load(value) and str(found) != value:
            wrong.append(f"{key}: {value} in the table, {found} composed")
    assert wrong == []


def test_the_table_of_the_fairseq_recipes_is_true():
    head, *rows = SECTIONS["fairseq_base_100h"][1]
    assert {row[0] for row in rows} == {name for name in GROUPS["experiment"] if name.startswith("fairseq")}
    for experiment, _, *values in rows:
        for key, value in zip(head[2:], values, strict=True):
            if value != "-":
                assert _here(experiment, key) == yaml.safe_load(value), (experiment, key)
            else:
                assert _composed(experiment)[1]["freeze_policy"] == "feature_encoder"


def _number(value):
    return float(value) if re.fullmatch(r"-?[\d.]+(e-?\d+)?", value) else None


def test_a_number_of_a_recipe_is_the_same_here_or_has_a_note():
    for experiment, there, value, key, ours, note in ROWS:
        if key != "-" and not note and None not in (_number(value), _number(ours)):
            assert _number(value) == _number(ours), (experiment, there)
