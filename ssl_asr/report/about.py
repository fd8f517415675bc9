"""What a run is: its headline, scores, data, what trained, configuration, environment and command."""

import html
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import yaml

from ssl_asr.metrics.report import Score
from ssl_asr.pages.charts import number
from ssl_asr.pages.page import definitions, folded, table
from ssl_asr.report.runs import Run
from ssl_asr.report.scored import Scored
from ssl_asr.report.style import count, duration, interval, percent

# Lines of skipped.jsonl that are listed.
_LISTED = 50


def headline(scored: Scored) -> str:
    """HTML of the most important numbers: the WER of each split, what trained, and on how much."""
    cards = [_wer_card(split, scores[0]) for split, scores in scored.scores.items()]
    run = scored.run
    total, trains = run.last("model/parameters"), run.last("model/trainable")
    if total is not None and trains is not None:
        what = "parameters train" if total == trains else f"of {count(total)} parameters train"
        cards.append(_card(count(trains), f"{what} ({policy(run)})" if policy(run) else what))
    elif policy(run):
        cards.append(_card(html.escape(policy(run)), "freeze policy"))
    hours = run.last("data/train_hours")
    if hours is not None:
        utterances = f"train, {count(run.last('data/train_utterances') or 0)} utterances"
        cards.append(_card(f"{hours:,.2f} <small>h</small>", utterances))
    seconds = run.fact("seconds")
    if isinstance(seconds, int | float):
        cards.append(_card(duration(seconds), "duration of the command"))
    return f'<div class="cards">{"".join(cards)}</div>' if cards else ""


def _card(big: str, what: str) -> str:
    return f'<div class="card"><div class="big">{big}</div><div class="what">{html.escape(what)}</div></div>'


def _wer_card(split: str, score: Score) -> str:
    bounds = interval(score.wer_low, score.wer_high)
    unit = "" if score.wer_unit == "words" else f", {score.wer_unit}"
    what = f"WER on {split} ({score.normalizer}{unit})" + (f", 95 %: {bounds}" if bounds else "")
    return _card(f"{percent(score.wer)} <small>%</small>", what)


def policy(run: Run) -> str:
    """The class of the freeze policy in words: ``TopK`` is ``top k``."""
    name = run.option("freeze_policy")
    return "".join(f" {c.lower()}" if c.isupper() and at else c.lower() for at, c in enumerate(name))


def model_of(run: Run) -> str:
    """The model, by the source of its backbone, or as an evaluation names it."""
    source = run.setting("backbone", "source") or run.fact("model")
    return str(source) if source else ""


def subtitle(run: Run) -> str:
    """Model, task, time and status in one line, as text."""
    parts = [model_of(run), run.option("task").lower()]
    finished = run.fact("finished")
    if isinstance(finished, str):
        parts.append(f"finished {finished[:16].replace('T', ' ')} UTC")
    if run.status != "done":
        parts.append(run.status)
    return ", ".join(filter(None, parts))


def notices(scored: Sequence[Scored]) -> str:
    """HTML of what is missing, damaged or not finished. "" if there is nothing."""
    several, lines = len(scored) > 1, []
    for one in scored:
        run = one.run
        found = [*run.missing, *one.notes]
        if run.note is not None and run.note.error:
            found.insert(0, f"{run.status}: {run.note.error}")
        elif run.status != "done":
            found.insert(0, f"the run is {run.status}")
        if found:
            name = f"<b>{html.escape(run.name)}</b>: " if several else ""
            lines.append(f"<li>{name}{html.escape('; '.join(found))}</li>")
    return f'<div class="notices"><b>Missing</b><ul>{"".join(lines)}</ul></div>' if lines else ""


def scores_table(scored: Scored) -> str:
    """HTML of the error rates, a row for each split and normalizer, as evaluate prints them."""
    if not scored.scores:
        return "<h2>Scores</h2><p>There are no scores.</p>"
    rows = []
    for split, scores in scored.scores.items():
        for one in scores:
            words = one.words
            counts = (f"{n:,}" for n in (words.sub, words.ins, words.dele, words.ref))
            wrong = f"{one.sentence_errors:,} of {one.utterances:,}"
            bounds = interval(one.wer_low, one.wer_high)
            names = [html.escape(split), html.escape(one.normalizer)]
            rows.append([*names, percent(one.wer), bounds, *counts, one.wer_unit, percent(one.cer), wrong])
    heads = ["split", "normalizer", "WER %", "95 % interval", "sub", "ins", "del", "units", "unit", "CER %"]
    extra = _extra_scores(scored.run)
    return "<h2>Scores</h2>" + table([*heads, "utterances wrong"], rows, numbers=(2, 3, 4, 5, 6, 7, 9, 10)) + extra


def _extra_scores(run: Run) -> str:
    """BLEU and chrF, and accuracies of languages, where ``results.json`` has them."""
    rows = []
    for split, row in run.results.items():
        found = [(one, "name", "score", "") for one in _rows(row, "translation")]
        found += [(one, "language", "accuracy", "detected: ") for one in _rows(row, "languages")]
        rows += [[split, f"{before}{one.get(name, '')}", _plain(one.get(value))] for one, name, value, before in found]
    escaped = [[html.escape(cell) for cell in row] for row in rows]
    return table(["split", "measure", "value"], escaped, numbers=(2,)) if rows else ""


def _rows(row: Any, key: str) -> list[dict[str, Any]]:
    rows = row.get(key) if isinstance(row, dict) else None
    return [one for one in rows if isinstance(one, dict)] if isinstance(rows, list) else []


def _plain(value: object) -> str:
    return number(value) if isinstance(value, int | float) and math.isfinite(value) else str(value)


def data_section(run: Run) -> str:
    """HTML of what was kept and dropped, and of the batches."""
    splits = sorted({name[5:].rpartition("_")[0] for name in run.curves if name.startswith("data/")}, key=_split_order)
    rows = []
    for split in splits:
        values = [run.last(f"data/{split}_{what}") for what in ("utterances", "hours", "dropped")]
        kept, hours, dropped = (0.0 if value is None else value for value in values)
        path = run.setting("data", split) or _test_path(run, split)
        numbers = (f"{kept:,.0f}", f"{hours:,.2f}", f"{dropped:,.0f}")
        rows.append([html.escape(split), *numbers, f"<code>{html.escape(_paths(path))}</code>"])
    parts = [table(["split", "utterances", "hours", "dropped", "manifest"], rows, numbers=(1, 2, 3))] if rows else []
    parts += [_batches(run), _skipped(run)]
    return "<h2>Data</h2>" + "".join(parts) if any(parts) else ""


def _split_order(name: str) -> tuple[int, str]:
    return ["train", "dev"].index(name) if name in ("train", "dev") else 2, name


def _test_path(run: Run, split: str) -> Any:
    named = run.setting("data", "test")
    return named.get(split) if isinstance(named, dict) else None


def _paths(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(str(path) for path in value.values())
    return "" if value is None else str(value)


def _batches(run: Run) -> str:
    batches = run.fact("batches")
    rows = []
    for split, one in batches.items() if isinstance(batches, dict) else ():
        hours = _of(one, "computed_s") / 3600
        shares = [f"{100 * _of(one, key):.1f}" for key in ("fill", "padding")]
        rows.append([html.escape(str(split)), f"{_of(one, 'batches'):,.0f}", f"{hours:,.2f}", *shares])
    heads = ["split", "batches", "hours computed", "budget filled %", "padding %"]
    return table(heads, rows, numbers=(1, 2, 3, 4)) if rows else ""


def _of(row: Any, key: str) -> float:
    value = row.get(key) if isinstance(row, dict) else None
    return float(value) if isinstance(value, int | float) else math.nan


def _skipped(run: Run) -> str:
    if not run.skipped:
        return ""
    counts = Counter((str(row.get("split", "")), str(row.get("reason", ""))) for row in run.skipped)
    rows = [[html.escape(split), html.escape(reason), f"{n:,}"] for (split, reason), n in counts.most_common()]
    listed = [
        [html.escape(str(row.get(key, ""))) for key in ("split", "id", "reason", "detail")]
        for row in run.skipped[:_LISTED]
    ]
    shown = "all" if len(listed) == len(run.skipped) else f"the first {len(listed)} of {len(run.skipped):,}"
    lines = folded(f"Lines: {shown}", table(["split", "id", "reason", "detail"], listed))
    return "<h3>Left out</h3>" + table(["split", "reason", "utterances"], rows, numbers=(2,)) + lines


def origin_section(run: Run) -> str:
    """HTML of the command, versions, machine and configuration, and of the log."""
    parts = []
    command = run.fact("command")
    if command:
        parts.append(f"<h3>Command</h3><pre>{html.escape(str(command))}</pre>")
    if run.note is not None and run.note.overrides:
        parts.append(f"<h3>Overrides of the job</h3><pre>{html.escape(chr(10).join(run.note.overrides))}</pre>")
    facts = [("folder", str(run.path)), *_facts(run)]
    parts.append(definitions([(name, value) for name, value in facts if value]))
    if run.config:
        text = yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True)
        parts.append(folded("Configuration (config.yaml)", f"<pre>{html.escape(text)}</pre>"))
    if run.log.strip():
        parts.append(folded("Log", f"<pre>{html.escape(run.log)}</pre>"))
    return "<h2>Command, environment and configuration</h2>" + "".join(parts)


def _facts(run: Run) -> list[tuple[str, str]]:
    versions, git = run.fact("versions"), run.fact("git")
    shown = ", ".join(f"{name} {value}" for name, value in versions.items()) if isinstance(versions, dict) else ""
    commit = ""
    if isinstance(git, dict):
        commit = f"{git.get('commit')}{' with changes' if git.get('changed') else ''}"
    times = [str(run.fact(key) or "") for key in ("started", "finished")]
    checkpoints = run.fact("checkpoints")
    used = sorted({str(one) for one in checkpoints.values()}) if isinstance(checkpoints, dict) else []
    return [
        ("model", model_of(run)),
        ("checkpoint", ", ".join(used)),
        ("started", times[0]),
        ("finished", times[1]),
        ("precision", str(run.setting("trainer", "precision") or "")),
        ("seed", str(run.setting("seed")) if run.setting("seed") is not None else ""),
        ("versions", shown),
        ("git commit", commit),
        ("platform", str(run.fact("platform") or "")),
    ]
