"""W&B offline: the files of a run hold config, metrics and tables."""

import json
import struct

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from ssl_asr.training.loggers import WandbLog
from ssl_asr.training.wandb import finish, make_wandb_logger
from tests.training.toy_runs import toy_overrides


@pytest.fixture(scope="module")
def sweep(run_command, toy_checkpoints, toy_corpus, tmp_path_factory):
    """Two jobs of a sweep, logged offline."""
    folder = tmp_path_factory.mktemp("wandb") / "freeze_sweep"
    overrides = toy_overrides(toy_checkpoints["wavlm_layer"], toy_corpus)
    overrides[overrides.index("logger=none")] = "logger=wandb"
    swept = ["-m", "freeze=true,false", f"hydra.sweep.dir={folder}", "logger.tags=[mine]"]
    done = run_command("train", *overrides, *swept, "logger.audio_samples=3", "logger.log_model=true", "verbose=false")
    assert done.returncode == 0, done.stderr
    assert "wandb: " not in done.stdout + done.stderr, "W&B prints nothing by itself"
    return [folder / "0", folder / "1"]


class Read:
    """What the ``.wandb`` file of a run holds.

    Attributes:
        run: The record of the run.
        config, summary: Values by key.
        history: Rows of values by key.
        artifacts: Records of artifacts.
        exit_code: With which the run ended.
    """

    def __init__(self, folder):
        records = list(_records(folder))
        self.exit_code = next(r.exit.exit_code for r in records if r.WhichOneof("record_type") == "exit")
        [self.run] = [r.run for r in records if r.WhichOneof("record_type") == "run"]
        self.config = {item.key: json.loads(item.value_json) for item in self.run.config.update}
        self.history, self.summary = [], {}
        self.artifacts = [r.artifact for r in records if r.WhichOneof("record_type") == "artifact"]
        for record in records:
            if record.WhichOneof("record_type") == "history":
                self.history.append(_items(record.history.item))
            elif record.WhichOneof("record_type") == "summary":
                self.summary |= _items(record.summary.update)

    @property
    def keys(self):
        """Logged keys. Parts of media, such as ``val/predictions/path``, count as their whole."""
        found = {key for row in self.history for key in row}
        parts = ("/_type", "/sha256", "/size", "/path", "/artifact_path", "/_latest_artifact_path", "/ncols", "/nrows")
        others = ("/format", "/width", "/height", "/log_mode")
        return {key.removesuffix(part) for key in found for part in (*parts, *others) if key.endswith(part)} | found


def _items(items):
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


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


# What a run with dev and test sets has in a dashboard. The names are promised: workspaces and users' queries use them.
SCORES = ("wer", "cer", "wer/lower", "wer/whisper_english", "cer/lower", "cer/whisper_english")
PROMISED = {
    *(f"data/{split}_{what}" for split in ("train", "dev", "test") for what in ("hours", "utterances", "dropped")),
    *("model/parameters", "model/trainable", "train/loss", "train/grad_norm", "train/grad_norm/rest", "lr/rest"),
    *(
        f"train/{name}"
        for name in ("epoch_s", "audio_s_per_s", "loader_wait", "checkpoint_wait_s", "peak_gb", "fill", "padding")
    ),
    *(
        "train/rank_balance",
        "train/nonfinite_updates",
        "val/loss",
        "val/wer_low",
        "val/wer_high",
        "val/wer_best",
        "trainer/global_step",
    ),
    *(f"val/{name}" for name in SCORES),
    *(f"{split}/{name}" for split in ("dev", "test") for name in SCORES),
    *(f"{split}/{name}" for split in ("dev", "test") for name in ("wer_low", "wer_high", "sub", "ins", "del")),
}
TABLES = {"val/predictions", "results", "dev/worst", "test/worst"}
PICTURES = {"val/posteriors/1", "val/posteriors/2"}


@pytest.fixture(scope="module")
def jobs(sweep):
    return [Read(folder) for folder in sweep]


def test_every_promised_number_table_and_picture_is_there(jobs):
    for job in jobs:
        assert job.keys >= PROMISED | TABLES | PICTURES
        assert job.summary["val/wer_unit"] == "words"
    assert {"train/grad_norm/encoder", "lr/encoder"} <= jobs[1].keys
    assert "train/grad_norm/encoder" not in jobs[0].keys, "the encoder is frozen"
    assert "train/mfu" not in jobs[0].keys, "the peak of a CPU is not known"


def test_numbers_are_those_of_the_run(jobs, sweep):
    for job, folder in zip(jobs, sweep, strict=True):
        results = json.loads((folder / "results.json").read_text())
        for split in ("dev", "test"):
            score = results[split]["scores"]["lower"]
            for name in ("wer", "cer", "wer_low", "wer_high"):
                assert job.summary[f"{split}/{name}"] == pytest.approx(score[name])
        rates = [row["val/wer"] for row in job.history if "val/wer" in row]
        best = [row["val/wer_best"] for row in job.history if "val/wer_best" in row]
        assert best == pytest.approx([min(rates[: n + 1]) for n in range(len(rates))])
        assert job.summary["data/train_utterances"] == 10
        assert job.summary["model/trainable"] <= job.summary["model/parameters"]
        steps = [row["trainer/global_step"] for row in job.history if "trainer/global_step" in row]
        assert steps == sorted(steps)


def test_run_is_named_for_what_distinguishes_it(jobs, sweep):
    for job, folder, freeze in zip(jobs, sweep, ("true", "false"), strict=True):
        assert job.run.run_id == (folder / "wandb_run_id.txt").read_text().strip()
        assert job.run.display_name.startswith("wav2vec2_base-")
        assert f"-freeze={freeze}-task=ctc" in job.run.display_name
        assert "data.train" not in job.run.display_name
        assert job.run.run_group.endswith("freeze_sweep")
        assert job.run.job_type == "sweep"
        assert list(job.run.tags) == ["mine", "wav2vec2_base", "ctc"]
        assert job.exit_code == 0
        origin = job.config["run"]
        assert {"command", "versions", "git", "platform"} <= set(origin)
        assert "torch" in origin["versions"]
    assert jobs[0].config["freeze_policy"] == {"_target_": "ssl_asr.models.freezing.FreezeEncoder"}
    assert jobs[0].config["optimizers"]["rest"]["lr"] == 2e-3, "values are numbers, not strings"


def test_tables_have_the_same_utterances_with_audio_and_colored_diffs(jobs, sweep):
    files = sorted(sweep[0].glob("wandb/offline-run-*/files/media/table/val/predictions*.table.json"))
    assert len(files) == 2, "one table per validation"
    both = [json.loads(file.read_text()) for file in files]
    assert both[0]["columns"] == ["id", "audio", "reference", "hypothesis", "diff", "sub", "ins", "del", "wer"]
    assert [row[0] for row in both[0]["data"]] == [row[0] for row in both[1]["data"]]
    assert len(both[0]["data"]) == 3
    by_id = {json.loads(line)["id"]: json.loads(line) for line in open(sweep[0] / "predictions" / "dev.jsonl")}
    # After training, dev.jsonl has the predictions of the best weights, which are those of one of the validations.
    written = {name: (row["ref"], row["hyp"]) for name, row in by_id.items()}
    assert any(all((row[2], row[3]) == written[row[0]] for row in table["data"]) for table in both)
    # W&B stores the media of a table in an artifact.
    tables = [artifact for artifact in jobs[0].artifacts if artifact.type == "run_table"]
    entries = [list(artifact.manifest.contents) for artifact in tables]
    first = next(each for each in entries if any("predictions" in entry.path for entry in each))
    audio = [entry for entry in first if entry.path.endswith(".wav")]
    assert len(audio) == 3
    assert all(entry.size > 8000 for entry in audio), "at least a quarter of a second"
    diffs = [entry for entry in first if entry.path.endswith(".html")]
    assert diffs
    assert "color:" in open(diffs[0].local_path).read()


def test_best_checkpoint_is_an_artifact_on_request(jobs, sweep):
    [model] = [artifact for artifact in jobs[0].artifacts if artifact.type == "model"]
    assert set(model.aliases) == {"latest", "best"}
    sizes = {entry.path: entry.size for entry in model.manifest.contents}
    assert set(sizes) == {"best.ckpt", "config.yaml", "results.json"}
    assert sizes["best.ckpt"] == (sweep[0] / "checkpoints" / "best.ckpt").stat().st_size


def test_a_failed_run_is_marked(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    options = WandbLog(project="p", entity=None, group=None, tags=[], offline=True, audio_samples=0)
    make_wandb_logger(options, folder=tmp_path, name="a", config={}).experiment.log({"x": 1.0})
    finish(failed=True)
    # Ends the process that writes the file.
    wandb.teardown()
    assert Read(tmp_path).exit_code == 1


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
