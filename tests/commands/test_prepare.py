"""What ``ssl-asr prepare`` refuses, and that nothing is replaced or half written."""

import pytest

from ssl_asr.config.tools import PrepareConfig
from ssl_asr.data.audio import read_waveform
from ssl_asr.data.manifest import read_manifest
from ssl_asr.errors import ConfigError, ManifestError
from tests.data.sources import clip, lines, run, text


@pytest.fixture
def folder(tmp_path):
    """Four recordings of four speakers, of which one has no transcript."""
    for i, name in enumerate(("ann", "bob", "cid", "dee")):
        clip(tmp_path / "in" / name / "a.wav", 1 + i)
        if name != "dee":
            text(tmp_path / "in" / name / "a.txt", f"words of {name}")
    return tmp_path / "in"


def test_too_many_skips_are_an_error_and_no_manifest_is_written(folder, tmp_path, capsys):
    with pytest.raises(ManifestError, match=r"1 of 4 utterances are left out: dee/a: no_transcript"):
        run(folder, tmp_path / "out", max_skip_fraction=0.2)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["skipped.jsonl"]
    assert "recordings: 4 in, 3 out, 1 skipped (no_transcript 1)" in capsys.readouterr().err
    assert len(run(folder, tmp_path / "out", max_skip_fraction=0.25)["all"]) == 3


def test_existing_manifests_are_not_replaced(folder, tmp_path):
    run(folder, tmp_path / "out")
    before = (tmp_path / "out" / "all.jsonl").read_bytes()
    with pytest.raises(
        ConfigError, match=r"out already holds a preparation \(all\.jsonl\)\. Choose another output_dir"
    ):
        run(folder, tmp_path / "out", max_skip_fraction=0.0)
    with pytest.raises(ConfigError, match=r"output_dir: .*train\.jsonl is already there"):
        run(folder, text(tmp_path / "two" / "train.jsonl", "mine").parent, splits={"train": 0.5, "dev": 0.5})
    assert (tmp_path / "two" / "train.jsonl").read_text() == "mine"
    assert (tmp_path / "out" / "all.jsonl").read_bytes() == before
    assert len(lines(tmp_path / "out" / "skipped.jsonl")) == 1


def test_a_preparation_is_not_mixed_with_another_one(folder, tmp_path):
    """Manifests of other splits, or in another format, would stay beside those of the new one."""
    run(folder, tmp_path / "out", splits={"train": 0.5, "dev": 0.5}, split_by="recording")
    text(tmp_path / "out" / "notes.txt", "mine")
    for settings in ({}, {"format": "kaldi"}, {"splits": {"test": 1.0}}):
        with pytest.raises(
            ConfigError, match=r"already holds a preparation \((train|dev)\.jsonl, (train|dev)\.jsonl\)"
        ):
            run(folder, tmp_path / "out", **settings)
    assert run(folder, tmp_path / "out", overwrite=True).keys() == {"all", "skipped"}
    assert not (tmp_path / "out" / "train.jsonl").exists()
    run(folder, tmp_path / "out", overwrite=True, format="kaldi")
    assert not (tmp_path / "out" / "all.jsonl").exists()
    assert (tmp_path / "out" / "all" / "wav.scp").exists()
    run(folder, tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "all").exists()
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_files_that_no_preparation_wrote_are_never_replaced(folder, tmp_path):
    run(folder, tmp_path / "out")
    text(tmp_path / "out" / "train.jsonl", "mine")
    with pytest.raises(ConfigError, match=r"train\.jsonl is already there"):
        run(folder, tmp_path / "out", overwrite=True, splits={"train": 1.0}, split_by="recording")
    (tmp_path / "out" / "train.jsonl").unlink()
    assert (tmp_path / "out" / "all.jsonl").exists()
    # A record that names anything outside the folder is not believed.
    text(tmp_path / "out" / ".prepare.json", '{"files": ["../in", "..", "all.jsonl"]}')
    run(folder, tmp_path / "out", overwrite=True)
    assert (tmp_path / "in" / "ann" / "a.wav").exists()


@pytest.mark.parametrize("source", ["out", "out/all.jsonl"])
def test_a_preparation_does_not_replace_its_own_input(folder, tmp_path, source):
    run(folder, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"all\.jsonl is an input and would be overwritten"):
        run(tmp_path / source, tmp_path / "out", kind="manifest", format="kaldi", overwrite=True)
    assert (tmp_path / "out" / "all.jsonl").exists()


def test_a_preparation_that_failed_is_tried_again(folder, tmp_path, monkeypatch):
    with pytest.raises(ManifestError):
        run(folder, tmp_path / "out", max_skip_fraction=0.0)
    assert len(run(folder, tmp_path / "out")["all"]) == 3


@pytest.mark.parametrize("name", ["prepare", "check"])
def test_what_is_written_is_locked(folder, tmp_path, name):
    from ssl_asr.config.launch import _lock
    from ssl_asr.config.locks import Lock, in_use

    config = PrepareConfig(input=[str(folder)], output_dir=str(tmp_path / "out"))
    lock = Lock.of_folder(tmp_path / "out", "output_dir")
    assert not list(in_use(lock))
    with _lock(name, config):
        [error] = in_use(lock)
        assert "out is in use by process" in str(error)
    assert not (tmp_path / "out").exists()


def test_paths_are_relative_where_audio_and_manifests_can_be_moved_together(folder, tmp_path):
    [near, *_] = run(folder, tmp_path / "out")["all"]
    assert near["audio_filepath"] == "../in/ann/a.wav"
    [below, *_] = run(folder, folder / "out")["all"]
    assert below["audio_filepath"] == "../ann/a.wav"
    [far, *_] = run(folder, tmp_path / "some" / "where" / "out")["all"]
    assert far["audio_filepath"] == str(folder / "ann" / "a.wav")
    (tmp_path / "project").mkdir()
    for name in ("in", "out"):
        (tmp_path / name).rename(tmp_path / "project" / name)
    [moved, *_] = read_manifest(tmp_path / "project" / "out" / "all.jsonl")
    assert len(read_waveform(moved)) == 16000


def test_skips_say_what_is_known(folder, tmp_path):
    clip(folder / "eva" / "a.wav", 2)
    text(folder / "eva" / "a.txt", " ")
    text(folder / "fay" / "a.wav", "no audio")
    text(folder / "fay" / "a.txt", "words")
    found = {row["id"]: row for row in run(folder, tmp_path / "out")["skipped"]}
    assert found["eva/a"] | {"detail": ""} == {
        "id": "eva/a",
        "where": str(folder / "eva" / "a.txt"),
        "reason": "no_text",
        "detail": "",
        "duration": 2.0,
    }
    assert found["fay/a"].keys() == found["dee/a"].keys() | {"where"} == {"id", "where", "reason", "detail"}


def test_an_input_is_not_replaced(folder, tmp_path):
    run(folder, tmp_path / "out")
    (tmp_path / "out" / "all.jsonl").replace(tmp_path / "out" / "skipped.jsonl")
    with pytest.raises(ConfigError, match=r"skipped\.jsonl is an input and would be overwritten"):
        run(tmp_path / "out" / "skipped.jsonl", tmp_path / "out")


def test_nothing_is_half_written_if_a_writer_fails(folder, tmp_path, monkeypatch):
    from ssl_asr.data import preparation

    def fail(target, split, rows):
        (target.folder / f"{split}.jsonl").write_text("half")
        raise OSError(28, "No space left on device", str(target.folder))

    monkeypatch.setitem(dict(preparation.WRITERS), "manifest", (fail, ("{}.jsonl",)))
    monkeypatch.setattr(preparation, "WRITERS", {"manifest": (fail, ("{}.jsonl",))})
    with pytest.raises(OSError, match="No space left"):
        run(folder, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["skipped.jsonl"]


def test_several_inputs_become_one_corpus(folder, tmp_path):
    clip(tmp_path / "more" / "x.wav")
    table = text(tmp_path / "more" / "dev.csv", "audio,text\nx.wav,more\n")
    found = run([folder, table], tmp_path / "out")
    assert {split: len(rows) for split, rows in found.items()} == {"all": 3, "dev": 1, "skipped": 1}


def test_one_manifest_comes_with_the_options_that_divide_it(folder, tmp_path, capsys):
    run(folder, tmp_path / "out")
    wanted = "To divide it: splits='{train: 0.8, dev: 0.1, test: 0.1}' split_by=recording overwrite=true\n"
    assert wanted in capsys.readouterr().err
    run(folder, tmp_path / "two", columns={"speaker": "folder"})
    assert wanted.replace(" split_by=recording", "") in capsys.readouterr().err
    run(folder, tmp_path / "two", overwrite=True, splits={"train": 0.8, "dev": 0.1, "test": 0.1}, split_by="recording")
    assert "To divide it" not in capsys.readouterr().err


def test_speakers_are_split_by_folder(folder, tmp_path):
    fractions = {"train": 0.5, "dev": 0.25, "test": 0.25}
    found = run(folder, tmp_path / "out", columns={"speaker": "folder"}, splits=fractions)
    speakers = {split: {row["speaker"] for row in found[split]} for split in fractions}
    assert sorted(name for names in speakers.values() for name in names) == ["ann", "bob", "cid"]


def test_splits_with_names_that_are_no_files_are_refused(tmp_path):
    clip(tmp_path / "a.wav")
    for name in ("../x", "a/b", "..", ".hidden", "a\0b"):
        table = text(tmp_path / "t.csv", f'audio,text,split\na.wav,hi,"{name}"\n')
        with pytest.raises(ManifestError):
            run(table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"splits": {"train": 0.8, "dev": 0.1}}, "splits: is 0.9 in sum, expected 1"),
        ({"splits": {"train": 1.2, "dev": -0.2}}, r"splits\.dev: is -0.2, expected a fraction above 0"),
        ({"digest": "sha256:12"}, "digest: is 'sha256:12', expected sha256:… or md5:…"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, settings, message):
    [error] = PrepareConfig(input=["a"], output_dir=str(tmp_path), **settings).conflicts()
    with pytest.raises(ConfigError, match=message):
        raise error


def test_the_folder_of_a_run_is_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    [error] = PrepareConfig(input=["a"], output_dir=str(tmp_path)).conflicts()
    assert "is the folder of a training run" in str(error)


def test_the_command_line(folder, tmp_path, run_command):
    done = run_command(
        "prepare",
        folder,
        "-o",
        tmp_path / "out",
        "columns.speaker=folder",
        "splits={train: 0.5, dev: 0.5}",
        "max_skip_fraction=1",
    )
    assert done.returncode == 0, done.stderr
    assert "kind=folder" in done.stderr
    assert "Corpus" in done.stdout
    assert done.stdout.splitlines()[-2:] == [str(tmp_path / "out" / f"{split}.jsonl") for split in ("train", "dev")]
    done = run_command("prepare", folder, "-o", tmp_path / "two", "columns.txt=x", "kind=kaldy", "splits=[1]")
    assert done.returncode == 2
    assert "did you mean 'text'?" in done.stderr.lower()
    assert "kind: is 'kaldy'" in done.stderr
    assert "splits: is [1], expected {name: fraction, …}" in done.stderr
    assert "Traceback" not in done.stderr
