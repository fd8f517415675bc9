"""Folders of runs with known errors, written without a model, and the content of a page."""

import csv
import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import soundfile
import yaml

from ssl_asr.data.text import get_normalizers
from ssl_asr.metrics.evaluation import Detail, evaluate_split, write_results
from ssl_asr.metrics.provenance import Clock
from ssl_asr.metrics.report import Prediction, write_predictions

NORMALIZERS = ("lower", "whisper_english")
TEXTS = ["one two three four", "five six", "seven eight nine", "ten", "one two", "three four five six seven eight"]


def predictions(folder, wrong, *, count=24):
    """Utterances of which each ``wrong``-th has an error at its end, with audio beside them."""
    path = folder / "audio.wav"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.sin(np.arange(16_000 * 7) / 20).astype(np.float32) * 0.1, 16_000)
    rows = []
    for number in range(count):
        ref = TEXTS[number % len(TEXTS)]
        words = ref.split()
        hyp = " ".join([[*words[:-1], "x"], [*words, "extra"], words[:-1]][number // wrong % 3])
        rows.append(
            Prediction(
                f"u{number:02}",
                ref,
                hyp if number % wrong == 0 else ref,
                -0.5,
                1.0 + number % 6,
                str(path),
                lang="en",
                tags={"speaker": "ann" if number % 2 else "bob", "take": f"t{number}"},
            )
        )
    return rows


def make_run(folder, wrong=2, *, splits=("dev", "test"), metrics=True, overrides=None, number=0, status="done"):
    """A finished training run."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {split: predictions(folder, wrong + (split == "test")) for split in splits}
    for split, some in rows.items():
        write_predictions(folder / "predictions" / f"{split}.jsonl", some)
    detail = Detail(by=["length", "speaker"], confusions=10, worst=5)
    evaluations = {s: evaluate_split(s, some, [], get_normalizers(NORMALIZERS), detail) for s, some in rows.items()}
    write_results(folder / "results.json", evaluations, Clock(), {"model": "openai/whisper-tiny.en"})
    config = {
        "backbone": {"_target_": "a.WhisperBackbone", "source": "openai/whisper-tiny.en"},
        "task": {"_target_": "a.Ctc"},
        "freeze_policy": {"_target_": "ssl_asr.models.freezing.TopK", "layers": wrong},
        "data": {"train": {"train": "train.jsonl"}, "dev": "dev.jsonl", "test": {"test": "test.jsonl"}},
        "seed": 0,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "skipped.jsonl").write_text(
        json.dumps({"split": "train", "id": "gone", "where": "train.jsonl:3", "reason": "too_short", "detail": "0.0 s"})
        + "\n"
    )
    if metrics:
        write_metrics(folder / "metrics" / "metrics.csv")
    if overrides is not None:
        note = {"number": number, "overrides": overrides, "status": status, "score": 0.1, "measure": "best val/wer"}
        (folder / "job.json").write_text(json.dumps(note))
    return folder


def write_metrics(path, updates=40):
    """A log of a training with a row for each update, and a validation for each ten."""
    path.parent.mkdir(parents=True, exist_ok=True)
    names = ["step", "epoch", "train/loss", "train/grad_norm", "lr/encoder", "lr/rest", "val/loss", "val/wer"]
    names += ["val/wer/lower", "val/wer_low", "val/wer_high", "model/parameters", "model/trainable"]
    names += [f"data/train_{what}" for what in ("hours", "utterances", "dropped")]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        facts = {"model/parameters": 37_184_256, "model/trainable": 1_500_000, "data/train_hours": 0.62}
        writer.writerow({"step": 0, **facts, "data/train_utterances": 845, "data/train_dropped": 1})
        for step in range(updates):
            row = {"step": step, "train/loss": 2.0 / (step + 1), "train/grad_norm": 1.5}
            writer.writerow({**row, "lr/encoder": 1e-5 * step, "lr/rest": 1e-3 * step})
            if step % 10 == 9:
                wer = 0.5 / (step + 1)
                scores = {"val/wer": wer, "val/wer/lower": wer, "val/wer_low": wer / 2, "val/wer_high": wer * 2}
                writer.writerow({"step": step, "val/loss": 3.0 / (step + 1), **scores})


def hostile(rows, text):
    """Predictions with a text in each field that a page shows."""
    return [
        replace(
            row, id=f"{row.id}{text}", ref=f"{row.ref} {text}", hyp=f"{row.hyp} {text}x", tags={text: f"{n % 2}{text}"}
        )
        for n, row in enumerate(rows)
    ]


class Page(HTMLParser):
    """What a page holds.

    Attributes:
        tables: Cells of each table as texts, row by row, by the heading before it.
        elements: Names and attributes of all elements.
        text: All text but that of scripts and styles.
    """

    def __init__(self, html):
        super().__init__()
        self.tables, self.elements, self.text = [], [], ""
        self._open, self._title, self._heading = [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br", "image"):
            self._open.append(tag)
        if tag in ("h1", "h2", "h3"):
            self._heading = ""
        if tag == "table":
            self.tables.append((self._heading, []))
        if tag == "tr":
            self.tables[-1][1].append([])
        if tag in ("td", "th"):
            self.tables[-1][1][-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "script" in self._open or "style" in self._open:
            return
        self.text += data
        if self._open and self._open[-1] in ("h1", "h2", "h3"):
            self._heading += data
        if {"td", "th"} & set(self._open) and "title" not in self._open:
            self.tables[-1][1][-1][-1] += data

    def table(self, heading):
        """Rows of the first table below a heading, as dictionaries by the texts of its head."""
        head, *rows = next(rows for title, rows in self.tables if title == heading)
        return [dict(zip(head, row, strict=True)) for row in rows]

    def values(self, tag, attribute):
        """The values of an attribute of all elements of a name."""
        return [found[attribute] for name, found in self.elements if name == tag and attribute in found]
