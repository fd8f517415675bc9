"""The model card, README.md of an exported folder: everything that is known about the model, in one page.

The front matter is what the Hugging Face Hub reads. Absolute paths of this machine are cut to the names of files.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData

from ssl_asr.config.exporting import SIDECAR, ExportConfig
from ssl_asr.config.nodes import named_manifests
from ssl_asr.data.manifest import read_manifest
from ssl_asr.errors import UserError
from ssl_asr.export.base import ExportModel
from ssl_asr.export.sidecar import without_folders
from ssl_asr.inference.model import find_checkpoint
from ssl_asr.models.checkpoints import read_json
from ssl_asr.textfiles import is_hub_name

_NOT_A_SPLIT = ("run", "model", "checkpoints", "batches")
# Characters of an alphabet that are listed.
_MOST_CHARACTERS = 120


@dataclass(frozen=True, kw_only=True)
class Card:
    """A model card.

    Attributes:
        config: The export.
        model: The model.
        saved: Content of ``export.json``.
        results: Content of the run's ``results.json``. Empty if there is none for these weights.
    """

    config: ExportConfig
    model: ExportModel
    saved: dict[str, Any]
    results: dict[str, Any]

    @classmethod
    def of(cls, config: ExportConfig, model: ExportModel, saved: dict[str, Any]) -> "Card":
        """The card of an export."""
        return cls(config=config, model=model, saved=saved, results=results_of(config.model))

    @property
    def name(self) -> str:
        """Name of the model."""
        return (self.config.push or Path(self.config.output_dir).name).rpartition("/")[2]

    def text(self) -> str:
        """Content of README.md."""
        parts = (
            self._summary(),
            ("## Results", *self._results()),
            ("## How to run it", self.saved["usage"]),
            ("## Input length", self._window()),
            ("## Same text as in ssl_asr", *self._parity()),
            ("## Training", *self._training()),
            ("## Limits", "\n".join(f"- {limit}" for limit in self._limits())),
            ("## Versions", *self._versions()),
        )
        body = "\n\n".join(part for section in parts for part in section)
        return f"---\n{self._front_matter()}\n---\n\n{without_folders(body)}\n"

    # Front matter ------------------------------------------------------------------------------------------------

    def _front_matter(self) -> str:
        language, base = self._language(), self._base_model()
        data = ModelCardData(
            language=language,
            license=self.config.license,
            base_model=base,
            library_name=self.saved["format"],
            pipeline_tag="automatic-speech-recognition",
            tags=["automatic-speech-recognition", "ssl_asr", self.saved["task"]],
            metrics=["wer", "cer"],
            model_name=self.name,
            eval_results=list(self._eval_results()) or None,
        )
        return str(data.to_yaml())

    def _eval_results(self) -> Iterator[EvalResult]:
        for split, scores in self._splits():
            for name, score in scores.items():
                yield EvalResult(
                    task_type="automatic-speech-recognition",
                    dataset_type=split,
                    dataset_name=split,
                    dataset_split="test",
                    metric_type="wer",
                    metric_name=f"WER ({name})",
                    metric_value=round(100 * score["wer"], 2),
                )

    def _language(self) -> str | None:
        tokenizer: Any = self.model.module.tokenizer
        if getattr(tokenizer, "is_multilingual", None) is False:
            return "en"
        language: str | None = getattr(tokenizer, "language", None)
        return language

    def _base_model(self) -> str | None:
        backbone = (self.model.module.run_config or {}).get("backbone", {"source": self.config.model})
        source = str(backbone["source"])
        return source if "/" in source and is_hub_name(source) and not Path(source).exists() else None

    # Sections ----------------------------------------------------------------------------------------------------

    def _summary(self) -> Iterator[str]:
        yield f"# {self.name}"
        base = self._base_model()
        trained = self.model.module.run_config is not None
        origin = "A speech recognition model" if base is None else f"[{base}](https://huggingface.co/{base})"
        done = ", fine-tuned and exported" if trained else ", exported"
        parameters = self.saved["parameters"] / 1e6
        yield (
            f"{origin}{done} with ssl_asr as {self.saved['format']} ({self.saved['quantization']}): "
            f"{parameters:,.1f} million parameters, {self.saved['bytes'] / 1e6:,.1f} MB, task {self.saved['task']}."
        )
        if self.config.license is None:
            source = "the pretrained weights" if base is None else base
            yield f"The license is not stated. The licenses of {source} and of the training data apply."

    def _splits(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each test set with its scores by normalizer. The dev set counts if there is no other."""
        found = {
            split: content["scores"]
            for split, content in self.results.items()
            if split not in _NOT_A_SPLIT and isinstance(content, dict) and "scores" in content
        }
        tests = {split: scores for split, scores in found.items() if split != "dev"}
        yield from (tests or found).items()

    def _results(self) -> Iterator[str]:
        rows = [
            (
                split,
                name,
                f"{100 * score['wer']:.2f}",
                f"{100 * score['wer_low']:.2f} to {100 * score['wer_high']:.2f}",
                f"{100 * score['cer']:.2f}",
                f"{score['utterances']:,}",
            )
            for split, scores in self._splits()
            for name, score in scores.items()
        ]
        if not rows:
            yield "No test set was scored with these weights. `ssl-asr evaluate model=… manifest=…` scores one."
            return
        yield table(("test set", "normalizer", "WER %", "95 % interval", "CER %", "utterances"), rows)
        yield (
            "The trained checkpoint has these scores, in ssl_asr with the decoder and the window of its run. A table "
            "below compares the exported files."
        )

    def _window(self) -> str:
        window = self.saved["window"]
        if window is None:
            longest = self.model.module.speech_encoder.max_s
            size = "any length" if longest is None else f"up to {longest:g} s"
            return f"The exported files take input of {size}, without padding."
        if window["window"] == "real":
            text = f"The model was trained on real lengths: the speech and {window['tail_s']:g} s of silence, not 30 s."
        else:
            text = "The model expects windows of 30 s, as in pretraining."
        if not window["runtime_encodes_real_lengths"]:
            return f"{text} This runtime encodes 30 s for every input."
        if window["same_text_with_real_lengths"]:
            return f"{text} This runtime can encode real lengths, with the text of ssl_asr (measured below)."
        return (
            f"{text} This runtime can encode real lengths, but its text differs from that of ssl_asr (measured below): "
            "use it with 30 s."
        )

    def _parity(self) -> Iterator[str]:
        parity = self.saved["parity"]
        names = list(parity["comparisons"][0]["wer"])
        rows = []
        for one in parity["comparisons"]:
            pairs = [one["wer"][name] for name in names]
            wers = [f"{100 * pair['ssl_asr']['wer']:.2f} / {100 * pair['exported']['wer']:.2f}" for pair in pairs]
            change = 0.0 if one["change"] is None else one["change"]
            rows.append(
                (one["window"] or "", f"{one['same_text']} of {one['utterances']}", f"{100 * change:.2f}", *wers)
            )
        if "own_window" in parity:
            own = [f"{100 * parity['own_window'][name]['wer']:.2f}" for name in names]
            rows.append(("real, ssl_asr only", "", "", *own))
        yield table(("window", "same text", "change %", *(f"WER % ({name})" for name in names)), rows)
        yield (
            "Both programs transcribed the same utterances with greedy search. `change` is the WER between them. Of "
            "two WERs, the first is that of ssl_asr. `export.json` lists every difference."
        )
        if "word_times" in parity:
            times = parity["word_times"]
            yield (
                f"Of {times['words']:,} words of {times['utterances']:,} utterances, {times['within']:,} start "
                f"within {times['limit_s']:g} s of their start in ssl_asr. Words after a pause are not "
                "compared, since ssl_asr moves their start to the speech."
                + ("" if times["judged"] else " These are too few words to tell whether the times agree.")
            )

    def _training(self) -> Iterator[str]:
        config = self.model.module.run_config
        if config is None:
            if (Path(self.config.model) / SIDECAR).is_file():
                yield f"The weights are those of `{self.config.model}`, an export. Its model card says what trained."
            else:
                yield f"The weights are those of `{self.config.model}`. Nothing was trained."
            return
        yield f"What trained: {trained_parts(config)}."
        yield table(
            ("data", "manifest", "start of SHA-256", "utterances", "hours"), list(data_rows(config.get("data", {})))
        )
        run = self.results.get("run", {})
        if "command" in run:
            yield f"The command:\n\n```bash\n{run['command']}\n```"
        written = yaml.safe_dump(config, sort_keys=False, allow_unicode=True, width=100)
        yield f"<details><summary>The configuration</summary>\n\n```yaml\n{written}```\n\n</details>"

    def _limits(self) -> Iterator[str]:
        module = self.model.module
        tokenizer: Any = module.tokenizer
        yield "Nothing is known about speech that is unlike the test sets: other accents, noise, words or languages."
        if module.speech_encoder.max_s is not None:
            yield f"One pass takes at most {module.speech_encoder.max_s:g} s. Longer recordings have to be cut."
        characters = getattr(tokenizer, "characters", None)
        if characters is not None:
            listed = "".join(characters)
            shown = listed if len(listed) <= _MOST_CHARACTERS else f"{listed[:_MOST_CHARACTERS]}…"
            yield f"The model writes only these characters: `{shown.replace('`', '')}`."
        if self._language() == "en" and module.task_name == "seq2seq":
            yield "English only."
        yield "In noise and silence, the model may write words that nobody said."

    def _versions(self) -> Iterator[str]:
        run, export = self.results.get("run", {}), self.saved["run"]
        rows = []
        for title, found in (("training", run), ("export", export)):
            if found:
                versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
                git = found.get("git") or {}
                commit = f"{git['commit'][:12]}{' with changes' if git['changed'] else ''}" if git else ""
                rows.append((title, found["finished"], versions, commit))
        yield table(("step", "finished", "versions", "commit"), rows)
        yield f"Exported by:\n\n```bash\n{export['command']}\n```"


def results_of(model: str) -> dict[str, Any]:
    """Content of the ``results.json`` of the run that a model is from. Empty if it is about other weights."""
    checkpoint = find_checkpoint(model)
    if checkpoint is None:
        return {}
    run = checkpoint.absolute().parent.parent
    try:
        return read_json(run / "results.json") if find_checkpoint(str(run)) == checkpoint.absolute() else {}
    except UserError:
        return {}


def trained_parts(config: dict[str, Any]) -> str:
    """What a run trained, and how fast, in a sentence."""
    policy = dict(config.get("freeze_policy", {}))
    name = str(policy.pop("_target_", "")).rpartition(".")[2]
    settings = (
        f" ({', '.join(f'{key}={value}' for key, value in policy.items() if value is not None)})" if policy else ""
    )
    rates = [f"{side} {option['lr']:g}" for side, option in config.get("optimizers", {}).items() if "lr" in option]
    return f"freeze policy {name}{settings}; learning rates: {', '.join(rates)}; seed {config.get('seed')}"


def data_rows(data: dict[str, Any]) -> Iterator[tuple[str, str, str, str, str]]:
    """Each manifest of a run: its split, name, hash, utterances and hours."""
    for split in ("train", "dev", "test"):
        given = data.get(split)
        for path in (named_manifests(given, split) if given else {}).values():
            try:
                manifest = read_manifest(path)
            except UserError:
                yield split, Path(path).name, "no longer there", "", ""
                continue
            hours = float(manifest.durations_N.sum()) / 3600
            yield split, Path(path).name, f"`{_digest(Path(path))}`", f"{len(manifest):,}", f"{hours:.2f}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def write_card(folder: Path, card: Card) -> None:
    """Write README.md."""
    (folder / "README.md").write_text(card.text(), encoding="utf-8")
