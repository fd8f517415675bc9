"""Every mistake of a command line is found before the command starts, in every kind of command line."""

import subprocess
import sys

import pytest

from ssl_asr.config import launch
from ssl_asr.config.arguments import read_words
from ssl_asr.config.check import preflight, several_processes
from ssl_asr.config.composing import hydra_ready, jobs_of, parse_arguments
from ssl_asr.errors import UserError
from tests.command_runner import REPO
from tests.config.options import resolved
from tests.test_layers import SLOW

TRAIN = "data.train=t.jsonl"


def _check(name, arguments):
    words = read_words(name, arguments)
    preflight(name, [*words.flags, *words.overrides])


def errors_of(name, *arguments):
    with pytest.raises(UserError) as caught:
        _check(name, arguments)
    assert "Traceback" not in str(caught.value)
    return str(caught.value)


WRONG = {
    "backbone=whisper_tny_en": "backbone: no option 'whisper_tny_en'. Did you mean 'whisper_tiny_en'?",
    "callbacks=[early_stoping]": "callbacks: no option 'early_stoping'. Did you mean 'early_stopping'?",
    "audio_augment=[rooms,nois]": "audio_augment: no option 'nois'. Did you mean 'noise'?",
    "freezee=false": "freezee: unknown key. Did you mean 'freeze'?",
    "freeze=maybe": "freeze: is 'maybe', expected true or false, or null",
    "freeze=encoder": "freeze: is 'encoder', expected true or false, or null",
    "seed=abc": "seed: is 'abc', expected a whole number of 0 or more",
    "seed=-1": "seed: is -1, expected a whole number of 0 or more",
    "logger=null": "logger: is a group, and its value is the name of an option, not null",
    "optimisers.rest.lr=1": "optimisers.rest.lr: unknown key 'optimisers'. Did you mean 'optimizers'?",
    "data.dev={a: a.jsonl, b: b.jsonl}": "data.dev: is {a: a.jsonl, b: b.jsonl}, expected one path. Put further sets",
    "head.droput=0.1": "head.droput: unknown key. Did you mean 'dropout'?",
    "+head.droput=0.1": "head.droput: unknown key of LinearHead. Did you mean 'dropout'?",
    "head.dropout=much": "head.dropout: is 'much', expected a number from 0 to less than 1",
    "head.dropout=1": "head.dropout: is 1, expected a number from 0 to less than 1",
    "head.dropout=nan": "head.dropout: is nan, expected a number from 0 to less than 1",
    "backbone.layerdrop=2.0": "backbone.layerdrop: is 2.0, expected a number from 0 to less than 1, or null",
    "backbone.sorce=1": "backbone.sorce: unknown key. Did you mean 'source'?",
    "data.max_batch_s=-1": "data.max_batch_s: is -1, expected a number greater than 0",
    "data.max_batch_s=inf": "data.max_batch_s: is inf, expected a number greater than 0",
    "data.max_batch_size=0": "data.max_batch_size: is 0, expected a whole number of 1 or more, or null",
    "data.tempo_factors=[3]": "data.tempo_factors: is [3], expected a list, each item a factor from 0.5 to 2",
    "data.speed_factors=[0.1]": "data.speed_factors: is [0.1], expected a list, each item a factor from 0.5 to 2",
    "data.num_workers=true": "data.num_workers: is True, expected a whole number from 0 to 1024",
    "data.downmix=left": "data.downmix: is 'left', expected 'mean', 'first' or 'refuse'",
    "data.on_bad_audio=cry": "data.on_bad_audio: is 'cry', expected 'skip' or 'error'",
    "trainer.max_epochs=0": "trainer.max_epochs: is 0, expected a whole number of 1 or more",
    "trainer.gradient_clip_val=0": "trainer.gradient_clip_val: is 0, expected a number greater than 0, or null",
    "trainer.precision=fp16": "trainer.precision: is 'fp16', expected",
    "trainer.ema_decay=1.0": "trainer.ema_decay: is 1.0, expected a number greater than 0, up to less than 1, or null",
    "trainer.average_best=1": "trainer.average_best: is 1, expected a whole number of 2 or more, or null",
    "trainer.limit_train_batches=1.5": "trainer.limit_train_batches: is 1.5, expected a fraction from 0.0 to 1.0",
    "trainer.monitor=val/wre": "trainer.monitor: no metric 'val/wre'. Did you mean 'val/wer'?",
    "trainer.profiler=fast": "trainer.profiler: is 'fast', expected 'simple', 'advanced' or 'pytorch', or null",
    "normalizers=[whisper_englsh]": "normalizers: is ['whisper_englsh'], expected a list, each item 'none', 'lower'",
    "normalizers=[]": "normalizers: is [], expected a list",
    "tokenizer.normalizer=upper": "tokenizer.normalizer: is 'upper', expected 'none', 'lower'",
    "task=seq2seq": "backbone: SSLBackbone does not go with task=seq2seq",
    "head=none": "head: NoHead does not go with task=ctc. Use head=bilstm, dnn, linear or pretrained.",
    "tokenizer=whisper": "tokenizer: WhisperTokens does not go with task=ctc. Use tokenizer=bpe, char, pretrained",
    "decoder=whisper_beam": "decoder: WhisperBeam does not go with task=ctc. Use decoder=ctc_beam, ctc_greedy",
    "head._target_=os.system": "head._target_: class 'os.system' is not in ssl_asr",
    "scheduler@schedulers.rest=newbob": "schedulers.rest.monitor: is val/loss, and there is no dev split",
    "schedulers.rest.warmup=1.5": "schedulers.rest.warmup: is 1.5, expected a fraction of the run",
    "backbone.recommended_freeze=some": "backbone.recommended_freeze: is 'some', expected 'none', 'feature_encoder'",
    "optimizers.rest.lr=-1": "optimizers.rest.lr: is -1, expected a number of 0 or more",
    "optimizers.rest.betas=[0.9]": "optimizers.rest.betas: is [0.9], expected two numbers from 0 to less than 1",
    "optimizers.rest.layer_decay=0": "optimizers.rest.layer_decay: is 0, expected a number greater than 0, up to 1",
    "states.stride=4": "states.stride: is 4, expected 1, 2 or 3",
    "seed=${nothing}": "Interpolation key 'nothing' not found",
    "data.train": "data.train: has no value. Write data.train=…",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_mistake_is_named_with_its_key_and_remedy(override):
    assert WRONG[override] in errors_of("train", TRAIN, override)


def test_a_setting_of_a_part_that_is_not_chosen_says_to_choose_one():
    message = errors_of("transcribe", "input=[a.wav]", "model=m", "decoder.beam_size=3")
    assert message.startswith("decoder.beam_size: no decoder is chosen. Choose one too: decoder=")
    assert "ctc_beam|" in message


def test_numbers_of_many_digits_are_cut():
    assert len(errors_of("train", TRAIN, f"seed=-{'9' * 300}")) < 150


def test_manifests_of_one_path_or_one_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    twice = errors_of("evaluate", "model=m", "manifest=[dv.jsonl,./dv.jsonl]")
    assert twice.startswith("manifest: has dv.jsonl twice. Name each manifest once")
    same = errors_of("evaluate", "model=m", "manifest=[a/x/dv.jsonl,b/x/dv.jsonl]")
    assert "Name them: manifest={one: PATH, other: PATH}" in same


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("runs/one/checkpoints/best.ckpt", "model: no file or folder 'runs/one/checkpoints/best.ckpt'. Check the path"),
        ("/no/such/folder", "model: no file or folder '/no/such/folder'"),
        ("best.ckpt", "model: no file or folder 'best.ckpt'"),
        ("openai/whisper-tiny.en/", "for the model of the Hub, write model=openai/whisper-tiny.en"),
        ("https://huggingface.co/openai/whisper-base", "write model=openai/whisper-base"),
        ("https://huggingface.co/openai/whisper-base/tree/main", "write model=openai/whisper-base"),
    ],
)
def test_a_path_that_is_missing_is_not_looked_for_on_the_hub(name, message):
    assert message.lower() in errors_of("transcribe", "input=[a.wav]", f"model={name}").lower()


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("optimizers.pretrained.lr=1e-5", "Write optimizers.encoder.lr=1e-5"),
        ("optimizers.new.lr=1e-3", "Write optimizers.rest.lr=1e-3"),
        ("optimizer@optimizers.pretrained=adam", "Write optimizer@optimizers.encoder=adam"),
        ("scheduler@schedulers.new=cosine", "Write scheduler@schedulers.rest=cosine"),
        ("+schedulers.pretrained.warmup=0.1", "Write schedulers.encoder"),
        ("features=cached", "Write state_cache=disk"),
        ("features=none", "Write state_cache=none"),
    ],
)
def test_keys_of_earlier_versions_say_their_new_name(override, remedy):
    message = errors_of("train", TRAIN, override)
    assert "is now called" in message
    assert remedy in message


def test_an_experiment_with_old_keys_says_their_new_name(tmp_path):
    folder = tmp_path / "experiment"
    folder.mkdir()
    (folder / "old.yaml").write_text("# @package _global_\noptimizers:\n  new:\n    lr: 1.0\n")
    (folder / "older.yaml").write_text("# @package _global_\nfeatures: cached\n")
    (folder / "oldest.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /optimizer@optimizers.new: adam\n"
    )
    for name, new in (("old", "optimizers.rest"), ("older", "state_cache"), ("oldest", "optimizers.rest")):
        assert f"is now called '{new}'" in errors_of(
            "train", "--config-dir", str(tmp_path), TRAIN, f"experiment={name}"
        )


def test_all_mistakes_are_reported_at_once():
    mistakes = [
        "freezee=true",
        "backbone=bogus",
        "head.dropout=much",
        "data.max_batch_s=-1",
        "seed=x",
        "tokenizer=whisper",
    ]
    lines = errors_of("train", *mistakes).splitlines()
    for key in ("freezee", "backbone", "head.dropout", "data.max_batch_s", "seed", "tokenizer", "data.train"):
        assert sum(line.startswith(f"{key}:") for line in lines) == 1, lines


def test_missing_values_are_named():
    assert "data.train: is missing. Give data.train=…" in errors_of("train")


@pytest.mark.parametrize(
    ("name", "overrides", "error"),
    [
        ("evaluate", ["window=60s"], "window: is '60s', expected 'real' or '30s', or null"),
        ("evaluate", ["whisper_task=sing"], "whisper_task: is 'sing', expected 'transcribe' or 'translate'"),
        ("evaluate", ["manifst=x"], "Did you mean 'manifest'?"),
        ("evaluate", ["chunk_s=8", "stride_s=4"], "chunk_s: is 8.0, and stride_s=4.0 at both ends leaves nothing"),
        ("evaluate", ["only=text"], "only: is 'text', expected {tag: value, …}, or null"),
        ("evaluate", ["decoder=ctc_beam", "decoder.beam_size=0"], "decoder.beam_size: is 0"),
        ("evaluate", ["decoder=ctc_beam", "decoder.beam_size=1", "decoder.n_best=2"], "decoder.n_best: is 2"),
        (
            "evaluate",
            ["decoder=ctc_beam", "decoder.lm=no.arpa"],
            "decoder.lm: is 'no.arpa', expected a file that exists",
        ),
        ("transcribe", ["model=x"], "input: is missing"),
        ("transcribe", ["model=x", "input=[a]", "format=doc"], "format: is 'doc', expected 'text', 'jsonl'"),
        ("transcribe", ["model=x", "input=[a]", "decoder_file=no.yaml"], "decoder_file: no such file: no.yaml"),
        ("extract", ["model=x", "input=[a]", "output_dir=o", "dtype=int8"], "dtype: is 'int8', expected 'float32'"),
        ("lm", ["input=[a]", "output=o", "unit=label"], "model: is missing, and unit=label needs its labels"),
        ("lm", ["input=[a]", "output=o", "prune=[1,0]"], "prune: is [1, 0]"),
        ("tune_decoding", ["model=x", "manifest=m", "output=o", "lm_weights=[]"], "lm_weights: is []"),
        ("corpus", ["output_dir=x", "train=0"], "train: is 0, expected a whole number of 1 or more"),
        ("compare", ["one"], "compare: takes 2 names or more, FIRST SECOND [OTHERS …], and got 1. Write ssl-asr"),
    ],
)
def test_the_other_commands_check_too(name, overrides, error):
    assert error in errors_of(name, *overrides)


# Sweeps --------------------------------------------------------------------------------------------------------------


def test_every_job_of_a_sweep_is_checked_first():
    assert "bogus" in errors_of("train", "-m", TRAIN, "backbone=wav2vec2_base,bogus", "freeze=true,false")
    preflight("train", ["-m", TRAIN, "backbone=wav2vec2_base,wavlm_base_plus", "freeze=true,false"])
    preflight("train", ["-m", TRAIN, "backbone=whisper_medium", "freeze=true,false"])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["-m", "hydra/sweeper=optuna", "optimizers.encoder.lr=interval(-1,1e-4)"], "optimizers.encoder.lr: is -1.0"),
        (["-m", "hydra/sweeper=optuna", "head.dropout=choice(0.1,7)"], "head.dropout: is 7"),
        (["-m", "seed=range(-1,2)"], "seed: is -1"),
        (["sweep=optuna", "head.dropout=interval(0,3)"], "head.dropout: is 3"),
        (["sweep=lr", "head.dropout=3"], "head.dropout: is 3"),
        (["sweep=lr", "optimizers.rest.lr=1e-3,-1"], "optimizers.rest.lr: is -1"),
    ],
)
def test_search_spaces_are_checked_by_sample_values(arguments, error):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    assert error in errors_of("train", TRAIN, *arguments)


def test_search_spaces_that_are_right_pass():
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    preflight("train", [TRAIN, "sweep=optuna", "head.dropout=interval(0,0.3)"])
    preflight("train", [TRAIN, "-m", "hydra/sweeper=optuna", "optimizers.encoder.lr=tag(log,interval(1e-6,1e-4))"])


def jobs(*arguments):
    parsed = parse_arguments("train", [TRAIN, *arguments])
    with hydra_ready(parsed):
        return jobs_of(parsed)


def test_small_grids_are_multiplied_out_and_large_ones_are_not():
    assert len(jobs("sweep=seeds")) == 3
    assert len(jobs("sweep=lr")) == 9
    assert len(jobs("-m", "seed=range(100)", "freeze=true,false")) == 102
    assert len(jobs("freeze=true")) == 1


def test_one_folder_for_several_jobs_is_refused():
    sweep = ["-m", TRAIN, "freeze=true,false"]
    message = errors_of("train", *sweep, "run_dir=runs/a")
    assert "run_dir: is runs/a for 2 jobs" in message
    assert "hydra.sweep.dir=runs/a" in message
    preflight("train", ["-m", TRAIN, "run_dir=runs/a,runs/b"])
    preflight("train", [*sweep, "hydra.sweep.dir=runs/a"])


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("transcribe", ["input=[a.wav]", "model=openai/whisper-tiny.en", "decoder=whisper_greedy,whisper_beam"]),
        ("lm", ["input=[a.txt]", "order=2,3"]),
    ],
)
def test_one_output_for_several_jobs_is_refused(name, arguments):
    with pytest.raises(UserError, match="output: is out/a.srt for 2 jobs"):
        preflight(name, ["-m", *arguments, "output=out/a.srt"])


MANIFEST_LINE = '{"audio_filepath": "a.wav", "duration": 1.0, "text": "a"}\n'


@pytest.mark.parametrize("link", [None, "symbolic", "hard"])
@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lm", ["input=[{}]"]),
        ("lm", ["input=[other.txt]", "check=[{}]"]),
        ("tune_decoding", ["model=run", "manifest={}", "decoder=ctc_beam", "decoder.lm=words.arpa"]),
        ("tune_decoding", ["model=run", "manifest=other.jsonl", "decoder=ctc_beam", "decoder.lm={}"]),
        ("compare", ["first={}", "second=other.jsonl"]),
        ("align", ["model=run", "manifest={}"]),
    ],
)
def test_an_output_that_is_an_input_is_refused(tmp_path, monkeypatch, name, arguments, link):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "given.jsonl"
    path.write_text(MANIFEST_LINE)
    output = tmp_path / "output.jsonl" if link else path
    if link == "hard":
        output.hardlink_to(path)
    elif link == "symbolic":
        output.symlink_to(path)
    with pytest.raises(UserError, match="output: .* is an input and would be overwritten. Give another name"):
        preflight(name, [*(argument.format(path) for argument in arguments), f"output={output}"])
    assert path.read_text() == MANIFEST_LINE


def test_several_processes_in_a_sweep_are_refused():
    for overrides in (["trainer=ddp"], ["trainer.devices=2"], ["trainer.devices=auto"], ["trainer.num_nodes=2"]):
        [error] = several_processes(resolved(*overrides))
        assert error.where == "trainer"
        assert "in a sweep" in str(error)
    for overrides in (["trainer=gpu"], ["trainer.devices=[0]"], ["trainer.devices='1'"]):
        assert several_processes(resolved(*overrides)) == []


def test_several_processes_in_a_sweep_are_refused_before_the_first_job():
    message = errors_of("train", "-m", TRAIN, "seed=0,1", "trainer=ddp")
    assert message.count("in a sweep") == 1
    assert "start each job by itself, with torchrun" in message
    preflight("train", [TRAIN, "trainer=ddp"])


# Launching -----------------------------------------------------------------------------------------------------------


def test_hydra_writes_into_the_folder_of_the_results():
    given = [TRAIN, "run_dir=runs/a"]
    assert launch.hydra_follows("train", given) == [*given, "hydra.run.dir=runs/a"]
    for untouched in ([TRAIN], [*given, "hydra.run.dir=h"], ["-m", *given], ["--cfg=job", *given]):
        assert launch.hydra_follows("train", untouched) == untouched


@pytest.mark.parametrize("flag", ["--hydra-help", "--cfg=job", "--cfg=hydra", "--info=all"])
def test_a_command_line_that_only_shows_something_is_not_checked(flag):
    preflight("train", [flag, "freezee=1"])


def test_hydra_syntax_is_checked_early():
    assert "hydra.sweep.dirr" in errors_of("train", TRAIN, "hydra.sweep.dirr=x")


def test_a_wrong_command_line_is_refused_before_slow_libraries_are_imported():
    """So that it takes seconds."""
    done = subprocess.run(
        [sys.executable, "-c", _REFUSED, "train", TRAIN, "backbone.sorce=1"], cwd=REPO, capture_output=True, text=True
    )
    assert "backbone.sorce: unknown key" in done.stderr
    assert done.stdout.strip() == "[]"


_REFUSED = f"""
import sys
from ssl_asr.__main__ import main
try:
    main()
except SystemExit as exit:
    assert exit.code == 2
slow = {SLOW}
print([name for name in slow if name in sys.modules])
"""


def test_missing_extra_is_named_before_a_model_is_loaded(monkeypatch):
    monkeypatch.setattr("ssl_asr.config.schemas.find_spec", lambda name: None if name == "sacrebleu" else object())
    errors = errors_of("evaluate", "model=m", "manifest=m.jsonl", "whisper_task=translate")
    assert "pip install 'ssl_asr[translation]'" in errors


def test_detecting_the_language_again_needs_voice_activity_detection():
    errors = errors_of("transcribe", "model=m", "input=[a.wav]", "vad=false", "detect_every_min=5")
    assert "detect_every_min" in errors
    assert "Remove vad=false" in errors
