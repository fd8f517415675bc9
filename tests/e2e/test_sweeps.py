"""Debug runs, sweeps from files and from the command line, and options of somebody's own, as a user runs them."""

import json

import pytest
import yaml

from tests.training.toy_runs import toy_overrides


def small(toy_checkpoints, toy_corpus):
    return [*toy_overrides(toy_checkpoints["wav2vec2_layer"], toy_corpus), "trainer.max_epochs=1", "verbose=false"]


def test_debug_fast_runs_and_changes_no_file_of_an_earlier_run(run_command, toy_checkpoints, toy_corpus, tmp_path):
    earlier = {name: tmp_path / "run" / name for name in ("config.yaml", "results.json", ".hydra/config.yaml")}
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    for file in earlier.values():
        file.write_text("of an earlier run")
    (tmp_path / "counting.py").write_text(
        "from lightning import Callback\n"
        "class Count(Callback):\n"
        "    def on_train_end(self, trainer, pl_module) -> None:\n"
        "        print('micro-batches:', trainer.fit_loop.total_batch_idx + 1)\n"
    )
    counting = ["+callbacks.count={_target_: counting.Count}", "extensions=[counting]", "run_dir=run"]
    done = run_command("train", "debug=fast", *small(toy_checkpoints, toy_corpus), *counting, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "micro-batches: 2" in done.stdout
    assert {file.read_text() for file in earlier.values()} == {"of an earlier run"}
    assert not list((tmp_path / "run").rglob("*.ckpt"))


def test_a_development_run_leaves_no_folder(run_command, toy_checkpoints, toy_corpus, tmp_path):
    short = ["trainer.fast_dev_run=1", "logger=none", "verbose=true"]
    done = run_command("train", *small(toy_checkpoints, toy_corpus), *short, "run_dir=new", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "nothing (fast_dev_run)" in done.stdout
    assert not (tmp_path / "new").exists()


def test_a_sweep_option_runs_without_a_flag(run_command, toy_checkpoints, toy_corpus, tmp_path):
    given = ["sweep=seeds", *small(toy_checkpoints, toy_corpus), "hydra.sweep.dir=sweep"]
    done = run_command("train", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    configs = [yaml.safe_load(path.read_text()) for path in sorted((tmp_path / "sweep").glob("*/config.yaml"))]
    assert [config["seed"] for config in configs] == [0, 1, 2]


def test_flags_may_follow_overrides(run_command, toy_checkpoints, toy_corpus, tmp_path):
    given = [*small(toy_checkpoints, toy_corpus), "debug=fast", "-m", "seed=3,4", "hydra.sweep.dir=sweep"]
    done = run_command("train", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    jobs = sorted((tmp_path / "sweep").glob("*/job.json"))
    seeds = ["seed=3", "seed=4"]
    assert [set(seeds) & set(json.loads(job.read_text())["overrides"]) for job in jobs] == [{seed} for seed in seeds]


def test_jobs_after_a_failed_one_run_and_the_table_marks_it(run_command, toy_checkpoints, toy_corpus, tmp_path):
    given = [*small(toy_checkpoints, toy_corpus), "debug=fast", "-m", "hydra.sweep.dir=sweep"]
    given.append(f"data.train=none.jsonl,{toy_corpus['train']}")
    done = run_command("train", *given, cwd=tmp_path)
    assert done.returncode == 2, done.stderr[-2000:]
    assert "error: data.train: none.jsonl: no such manifest" in done.stderr
    assert "Traceback" not in done.stderr
    rows = (tmp_path / "sweep" / "sweep.csv").read_text().splitlines()
    assert rows[0] == "job,status,best val/wer,overrides,folder,error"
    assert [row.split(",")[1] for row in rows[1:]] == ["failed", "done"]
    assert "data.train: none.jsonl: no such manifest" in rows[1]
    assert "failed: data.train:" in done.stdout


@pytest.mark.parametrize(
    "space",
    [
        ["sweep=optuna"],
        pytest.param(
            ["-m", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1", "optimizers.rest.lr=tag(log,interval(1e-4,1e-2))"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["from a file", "from the command line"],
)
def test_optuna_searches_a_space(run_command, toy_checkpoints, toy_corpus, tmp_path, space):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    given = [*space, "hydra.sweeper.n_trials=2", "hydra.sweep.dir=sweep", *small(toy_checkpoints, toy_corpus)]
    done = run_command("train", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert 1e-4 <= found["best_params"]["optimizers.rest.lr"] <= 1e-2
    assert len(list((tmp_path / "sweep").glob("*/checkpoints/best.ckpt"))) == 2


def test_a_callback_of_a_users_own_runs(run_command, toy_checkpoints, toy_corpus, tmp_path):
    (tmp_path / "their_package.py").write_text(
        "from lightning import Callback\n"
        "class Shout(Callback):\n"
        "    def __init__(self, word: str) -> None:\n"
        "        self.word = word\n"
        "    def on_train_end(self, trainer, pl_module) -> None:\n"
        "        print(self.word)\n"
    )
    (tmp_path / "conf" / "callbacks").mkdir(parents=True)
    option = "shout:\n  _target_: their_package.Shout\n  word: hey\n"
    (tmp_path / "conf" / "callbacks" / "shout.yaml").write_text(option)
    given = ["--config-dir", "conf", "callbacks=shout", "callbacks.shout.word=hooray", "extensions=[their_package]"]
    done = run_command("train", *given, *small(toy_checkpoints, toy_corpus), "run_dir=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "hooray" in done.stdout
    refused = run_command("transcribe", "model=run", f"input=[{toy_corpus['test']}]", cwd=tmp_path)
    assert "extensions=[their_package]" in refused.stderr
    assert refused.returncode == 2
