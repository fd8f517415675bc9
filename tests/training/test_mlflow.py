"""MLflow: what a run writes to a local database."""

import pytest

from ssl_asr.errors import ConfigError
from ssl_asr.training.loggers import MlflowLog

CONFIG = {"optimizers": {"rest": {"lr": 2e-3}}, "run": {"command": "ssl-asr train", "git": None}}


def test_a_run_has_numbers_config_and_tags_and_is_continued(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="pip install 'ssl_asr[mlflow]'")
    option = MlflowLog(experiment="mine", tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")
    [csv, logger], callbacks = option.build(folder=tmp_path / "run", name="a-seed=1", config=CONFIG)
    assert (callbacks, csv.log_dir) == ([], str(tmp_path / "run" / "metrics"))
    logger.log_metrics({"val/wer": 0.5, "epoch": 0}, step=3)
    logger.finalize("success")
    logger.log_metrics({"test/wer/lower": 0.25}, step=3)
    _, again = option.build(folder=tmp_path / "run", name="a-seed=1", config=CONFIG)[0]
    again.log_metrics({"val/wer": 0.25}, step=7)
    client = mlflow.MlflowClient(option.tracking_uri)
    [run] = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert run.info.run_name == "a-seed=1"
    assert run.data.metrics == {"val/wer": 0.25, "epoch": 0.0, "test/wer/lower": 0.25}
    assert [(each.step, each.value) for each in client.get_metric_history(run.info.run_id, "val/wer")] == [
        (3, 0.5),
        (7, 0.25),
    ]
    assert run.data.params["optimizers/rest/lr"] == "0.002"
    assert run.data.tags["command"] == "ssl-asr train"


def test_a_missing_package_gives_an_error_with_its_extra(tmp_path, monkeypatch):
    from lightning.pytorch.loggers import mlflow

    monkeypatch.setattr(mlflow, "_MLFLOW_AVAILABLE", False)
    with pytest.raises(ConfigError, match=r"not installed.*pip install 'ssl_asr\[mlflow\]'"):
        MlflowLog(experiment="mine", tracking_uri=None).build(folder=tmp_path, name="a", config={})
