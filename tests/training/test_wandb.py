"""W&B offline: the files of a run hold config, metrics and tables."""

import json
import struct

import pytest
from wandb.proto import wandb_internal_pb2

from ssl_asr.training.loggers import WandbLog
from ssl_asr.training.wandb import finish, make_wandb_logger
from tests.training.toy_runs import toy_overrides


@pytest.fixture
def finished_run(run_command, toy_checkpoints, toy_corpus, tmp_path):
    overrides = toy_overrides(toy_checkpoints["wavlm_layer"], toy_corpus)
    overrides[overrides.index("logger=none")] = "logger=wandb"
    done = run_command(
        "train", *overrides, "freeze=true", f"run_dir={tmp_path}", "logger.audio_samples=3", "verbose=false"
    )
    assert done.returncode == 0, done.stderr
    return tmp_path


def _records(folder):
    """Yields the records of a ``.wandb`` file: a header of 7 bytes, then LevelDB's log format in blocks of 32 KiB."""
    [file] = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def test_offline_run_has_config_metrics_and_tables(finished_run):
    records = list(_records(finished_run))
    [run] = [r.run for r in records if r.WhichOneof("record_type") == "run"]
    assert run.run_id == (finished_run / "wandb_run_id.txt").read_text().strip()
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["freeze_policy"] == {"_target_": "ssl_asr.models.freezing.FreezeEncoder"}, (
        "the logged config is the resolved one"
    )
    assert config["optimizers"]["rest"]["lr"] == 2e-3, "values are numbers, not strings"

    history = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            history.append(items)
    keys = {key for row in history for key in row}
    assert {"val/wer", "val/loss", "train/loss", "lr/rest"} <= keys
    summary = {}
    for record in records:
        if record.WhichOneof("record_type") == "summary":
            items = record.summary.update
            summary |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
    assert summary["val/wer_unit"] == "words"
    tables = [row for row in history if any(key.startswith("val/predictions") for key in row)]
    assert len(tables) == 2, "one table per validation"
    steps = [row["trainer/global_step"] for row in history if "trainer/global_step" in row]
    assert steps == sorted(steps)

    files = sorted(finished_run.glob("wandb/offline-run-*/files/media/table/val/predictions*.table.json"))
    assert len(files) == 2
    both = [json.loads(file.read_text()) for file in files]
    table = both[0]
    assert table["columns"] == ["id", "audio", "reference", "hypothesis", "edits", "sub", "ins", "del", "wer"]
    assert len(table["data"]) == 3
    by_id = {json.loads(line)["id"]: json.loads(line) for line in open(finished_run / "predictions" / "dev.jsonl")}
    # After training, dev.jsonl has the predictions of the best weights, which are those of one of the validations.
    written = {name: (row["ref"], row["hyp"]) for name, row in by_id.items()}
    assert any(all((row[2], row[3]) == written[row[0]] for row in table["data"]) for table in both)

    # W&B stores the media of a table in an artifact.
    artifacts = [r.artifact for r in records if r.WhichOneof("record_type") == "artifact"]
    assert [artifact.type for artifact in artifacts] == ["run_table", "run_table"]
    for artifact in artifacts:
        audio = [entry for entry in artifact.manifest.contents if entry.path.endswith(".wav")]
        assert len(audio) == 3
        assert all(entry.size > 8000 for entry in audio), "at least a quarter of a second"


def test_a_machine_without_a_key_logs_offline(tmp_path, monkeypatch, capsys):
    """wandb has been asked for a key then, and does not look at its mode again."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    options = WandbLog(project="p", entity=None, group=None, tags=[], offline=None, audio_samples=0)
    logger = make_wandb_logger(options, folder=tmp_path, name="a", config={})
    try:
        logger.experiment.log({"x": 1.0})
    finally:
        finish(failed=False)
        monkeypatch.delenv("WANDB_MODE", raising=False)
    assert "logging offline" in capsys.readouterr().out
    assert list(tmp_path.glob("wandb/offline-run-*"))
