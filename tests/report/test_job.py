"""``ssl-asr report``: the page has the numbers of the run, says what is missing, and is one file."""

import json
import re
import shutil

import pytest

from ssl_asr.commands.report import report
from ssl_asr.config.tools import ReportConfig
from ssl_asr.errors import ConfigError
from ssl_asr.metrics.report import read_predictions, write_predictions
from tests.report.runs import Page, hostile, make_run, write_metrics

SCRIPT = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'&"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "a")


def written(tmp_path, *runs, **options):
    """The page of runs, and its text."""
    output = tmp_path / "report.html"
    report(ReportConfig(runs=[str(one) for one in runs], output=str(output), verbose=False, **options), tmp_path)
    text = output.read_text()
    return Page(text), text


@pytest.fixture(scope="module")
def page(run, tmp_path_factory):
    return written(tmp_path_factory.mktemp("page"), run)


def test_scores_are_those_that_evaluate_wrote(page, run):
    results = json.loads((run / "results.json").read_text())
    rows = page[0].table("Scores")
    assert [(row["split"], row["normalizer"]) for row in rows] == [
        (split, name) for split in ("test", "dev") for name in ("lower", "whisper_english")
    ]
    for row in rows:
        one = results[row["split"]]["scores"][row["normalizer"]]
        bounds = f"{100 * one['wer_low']:.2f} - {100 * one['wer_high']:.2f}"
        assert (row["WER %"], row["95 % interval"]) == (f"{100 * one['wer']:.2f}", bounds)
        counts = [row[name] for name in ("sub", "ins", "del", "units")]
        assert counts == [str(one["words"][name]) for name in ("sub", "ins", "del", "ref")]
        assert row["CER %"] == f"{100 * one['cer']:.2f}"
        assert row["utterances wrong"] == f"{one['sentence_errors']} of {one['utterances']}"


def test_errors_are_broken_down_as_evaluate_does(page, run):
    results = json.loads((run / "results.json").read_text())["test"]
    for key in ("length", "speaker"):
        rows = page[0].table(f"WER by {key}")
        assert [(row[key], row["WER %"], row["utterances"]) for row in rows] == [
            (one["value"], f"{100 * one['wer']:.2f}", str(one["utterances"])) for one in results["by"][key]
        ]
    wanted = {kind: [] for kind in ("sub", "ins", "del")}
    for one in results["confusions"]:
        wanted[one["operation"]].append((one["ref"] or one["hyp"], str(one["count"])))
    for kind, heading, head in (
        ("sub", "Substitutions", "reference"),
        ("ins", "Insertions", "inserted"),
        ("del", "Deletions", "deleted"),
    ):
        assert wanted[kind]
        assert [(row[head], row["count"]) for row in page[0].table(heading)][: len(wanted[kind])] == wanted[kind]
    shown = re.findall(r"<article><header><span><b>(\w+)</b>", page[1])
    assert shown[:5] == results["worst"]


def test_the_page_has_curves_data_settings_and_the_command(page):
    curves = {json.loads(one)[0]["name"]: json.loads(one) for one in page[0].values("figure", "data-series")}
    loss = next(iter(curves.values()))
    assert [one["name"] for one in loss] == ["train", "dev"]
    assert (loss[0]["x"][0], loss[0]["y"][0]) == ("1", "2")
    assert (loss[1]["x"], loss[1]["y"][0]) == (["10", "20", "30", "40"], "0.3")
    assert curves["lower"][0]["y"][0] == "5 (2.5 - 10)"
    assert page[0].table("Data")[0]["hours"] == "0.62"
    assert page[0].table("Left out") == [{"split": "train", "reason": "too_short", "utterances": "1"}]
    assert "1.5 M" in page[0].text
    assert "top k" in page[0].text
    assert "_target_: a.WhisperBackbone" in page[0].text
    assert "Missing" not in page[0].text


def test_the_page_is_one_file(page):
    for attribute in ("src", "href"):
        for tag in ("script", "link", "img", "audio", "image", "iframe", "source", "use", "a"):
            assert all(value.startswith("data:") for value in page[0].values(tag, attribute))
    assert not re.search(r"https?://|@import|url\(", page[1])
    [policy] = [value for value in page[0].values("meta", "content") if "default-src" in value]
    assert policy.startswith(
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; script-src"
    )


def test_texts_ids_tags_and_paths_are_escaped(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "a<script>alert(1)<")
    for split in ("dev", "test"):
        path = folder / "predictions" / f"{split}.jsonl"
        write_predictions(path, hostile(read_predictions(path), SCRIPT))
    results = json.loads((folder / "results.json").read_text())
    results["run"]["command"] = results["run"]["platform"] = SCRIPT
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "train.log").write_text(SCRIPT)
    (folder / "config.yaml").write_text(json.dumps({"backbone": {"source": SCRIPT}, SCRIPT: SCRIPT}))
    (folder / "skipped.jsonl").write_text(json.dumps(dict.fromkeys(("split", "id", "reason", "detail"), SCRIPT)))
    shutil.copytree(folder, tmp_path / "b")
    for runs in ([folder], [folder, tmp_path / "b"]):
        page, text = written(tmp_path, *runs, overwrite=True)
        assert SCRIPT in page.text
        names = [tag for tag, _ in page.elements]
        assert names.count("script") == 1
        assert "onerror" not in {key for _, found in page.elements for key in found}
        assert "<script>alert" not in text


def test_embedded_audio_has_a_bound(run, tmp_path):
    page, text = written(tmp_path, run)
    players = page.values("audio", "src")
    assert players
    assert all(one.startswith("data:audio/mpeg;base64,") for one in players)
    one_mb = max(map(len, players)) / 1e6
    page, small = written(tmp_path, run, audio_mb=1.5 * one_mb, overwrite=True)
    assert 0 < sum(map(len, set(page.values("audio", "src")))) < 1.5e6 * one_mb
    assert len(small) < len(text)
    assert "left out because the limit audio_mb is reached" in page.text
    page, _ = written(tmp_path, run, audio="link", overwrite=True)
    links = page.values("audio", "src")
    assert links
    assert all(link.endswith(f"a/audio.wav{link[link.index('#') :]}") for link in links)
    page, _ = written(tmp_path, run, audio="none", overwrite=True)
    assert not page.values("audio", "src")


def test_audio_that_is_gone_is_said(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "a")
    for split in ("dev", "test"):
        path = folder / "predictions" / f"{split}.jsonl"
        path.write_text(path.read_text().replace("audio.wav", "gone.wav"))
    page, _ = written(tmp_path, folder)
    assert "left out because the file cannot be read" in page.text


def _without(folder, *names):
    for name in names:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("removed", "said"),
    [
        (["predictions"], ["predictions: none", "scores are those of results.json"]),
        (["results.json", "predictions"], ["results.json: the run did not finish", "the run is unfinished"]),
        (["metrics"], ["metrics/metrics.csv: no curves"]),
        (["config.yaml"], ["config.yaml: its settings are not known"]),
    ],
)
def test_what_is_missing_is_said(run, tmp_path, removed, said):
    folder = shutil.copytree(run, tmp_path / "a")
    _without(folder, *removed)
    page, _ = written(tmp_path, folder)
    for text in said:
        assert text in page.text
    if removed == ["predictions"]:
        assert page.table("Scores")[0]["WER %"]


def test_damaged_files_are_said(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "a")
    for name in ("results.json", "metrics/metrics.csv", "predictions/dev.jsonl", "skipped.jsonl", "config.yaml"):
        (folder / name).write_text("{[")
    page, _ = written(tmp_path, folder)
    for name in ("results.json", "metrics/metrics.csv", "predictions/dev.jsonl", "skipped.jsonl", "config.yaml"):
        assert f"{name} cannot be read" in page.text
    assert {row["split"] for row in page.table("Scores")} == {"test"}


def test_values_that_are_not_finite_and_damaged_lines_are_said(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "a")
    path = folder / "metrics" / "metrics.csv"
    head, *rows = path.read_text().splitlines()
    width, loss = len(head.split(",")), head.split(",").index("train/loss")
    for place in (5, 6, 7):
        cells = rows[place].split(",")
        assert cells[loss], "a row of an update"
        cells[loss] = "nan" if place % 2 else "-inf"
        rows[place] = ",".join(cells)
    rows += ["x" + "," * (width - 1), "9" + "," * width + "7", "9,no" + "," * (width - 2)]
    path.write_text("\n".join([head, *rows]) + "\n")
    page, _ = written(tmp_path, folder)
    assert "train/loss: 3 of 40 values are not finite" in page.text
    assert f"metrics/metrics.csv: 3 damaged lines, the first is line {len(rows) - 1}" in page.text
    _, whole = written(tmp_path, run)
    assert "damaged" not in whole


def test_recorded_scores_that_are_others_are_said(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "a")
    results = json.loads((folder / "results.json").read_text())
    results["test"]["scores"]["lower"]["wer"] = 0.5
    (folder / "results.json").write_text(json.dumps(results))
    page, _ = written(tmp_path, folder)
    assert "test, lower: results.json has a WER of 50.00 %, and the predictions" in page.text


def test_a_log_of_metrics_alone_is_a_run(tmp_path, capsys):
    write_metrics(tmp_path / "a" / "metrics" / "metrics.csv", updates=900)
    page, _ = written(tmp_path, tmp_path / "a")
    loss = json.loads(page.values("figure", "data-series")[0])
    assert len(loss[0]["x"]) == 300
    assert "There are no scores" in page.text
    assert "not complete, see the page: a" in capsys.readouterr().out


def test_a_file_of_predictions_is_a_run(run, tmp_path):
    page, _ = written(tmp_path, run / "predictions" / "test.jsonl")
    assert [row["split"] for row in page.table("Scores")] == ["test", "test"]


def test_names_that_are_no_run_are_refused(run, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, error in (
        ("empty", r"runs: .*empty is neither a run nor a sweep"),
        ("gone", "runs: no file or folder"),
        ("e*", "runs: what .* matches is no run"),
        ("q*", "runs: nothing matches"),
    ):
        with pytest.raises(ConfigError, match=error):
            written(tmp_path, tmp_path / name)
        assert not (tmp_path / "report.html").exists()
    with pytest.raises(ConfigError, match="splits: no run has other"):
        written(tmp_path, run, splits=["other"])


@pytest.mark.parametrize("name", ["predictions/test.jsonl", "config.yaml"])
def test_inputs_are_not_overwritten(run, tmp_path, name):
    folder = shutil.copytree(run, tmp_path / "a")
    before = (folder / name).read_bytes()
    config = ReportConfig(runs=[str(folder)], output=str(folder / name), verbose=False, overwrite=True)
    with pytest.raises(ConfigError, match="is an input and would be overwritten"):
        report(config, tmp_path)
    assert (folder / name).read_bytes() == before


def test_a_report_in_the_folder_of_its_run_can_be_replaced(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "a")
    for _ in range(2):
        written(folder, folder, audio="none", splits=["test"])
