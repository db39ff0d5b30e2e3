"""The README.md of a published adapter: what it is, how it was made, how it did, how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tunery_api.adapterserver import ENGINE_RANKS
from tunery_api.findings import FindingStatus
from tunery_api.manifest import Lineage, MergeInputRecord, SourceRecord
from tunery_api.measured import DatasetStatus, change_text, number_text
from tunery_api.methods import PREFERENCE_TASKS
from tunery_api.redact import redact
from tunery_api.runspec import RunIdentity
from tunery_api.serving import method_problem
from tunery_trainer.diagnosis.answers import ANSWERS_FILE, Answer
from tunery_trainer.reporting.markdown import literal, section, table
from tunery_trainer.settings.experts import EXPERTS, says_adapted
from tunery_trainer.settings.units import human_bytes

CARD_FILE = "README.md"
_METRIC_NAMES = {
    "evalLoss": "Evaluation loss",
    "baseEvalLoss": "Evaluation loss of {start}",
    "loss": "Training loss",
    "evalRewardAccuracy": "Reward accuracy on held-out rows",
    "evalRewardMargin": "Reward margin on held-out rows",
    "baseEvalRewardAccuracy": "Reward accuracy of {start}",
    "baseEvalRewardMargin": "Reward margin of {start}",
    "exactMatch": "Answers that are word for word the row's",
    "baseExactMatch": "Answers of {start} that are word for word the row's",
    "rougeL": "ROUGE-L of the answers",
    "baseRougeL": "ROUGE-L of the answers of {start}",
    "rankError": "Largest relative error of a module at this rank",
    "meanRankError": "Mean relative error of the modules at this rank",
}
_SHOWN_ANSWERS = 4
_MAX_ANSWER = 400
"""Characters."""
_FOUND = ("Finding", "Severity", "Step", "What was seen")
_MAX_CARD_BYTES = 64 << 10


@dataclass(frozen=True)
class Shown:
    """What a card shows of the files beside it."""

    pictures: Mapping[str, str] = field(default_factory=dict)
    """Names of image files, by title."""
    answers: Sequence[Answer] = ()
    """Of which the first few are shown."""
    search: str = ""
    """How a sweep found it, in Markdown."""


def model_card(
    run: RunIdentity,
    lineage: Lineage,
    uri: str,
    *,
    shown: Shown | None = None,
    full_model: bool = False,
) -> str:
    """Return the card in Markdown, with the front matter that the hub reads.

    `shown` is what lies beside it; `full_model` is true for a merge into the base weights.
    """
    shown = shown or Shown()
    base = lineage.served_name or (lineage.model.uri if lineage.model else "the base model")
    adapter = "Merged adapter" if lineage.inputs else f"{lineage.method or 'PEFT'} adapter"
    loading = _load_model(uri, lineage) if full_model else _load_adapter(run.name, base, uri, lineage)
    kind = "Model with merged adapters" if full_model else adapter
    parts = [
        _front_matter(base, lineage, full_model=full_model),
        f"**Rejected, and not to be served:** {lineage.rejected}." if lineage.rejected else "",
        f"**Not finished:** {lineage.stopped}." if lineage.stopped else "",
        f"# {run.name}\n\n{kind} for `{base}`, made by Tunery ({run.kind} `{run.namespace}/{run.name}`).",
        section("Results", table(("Metric", "Value"), _metric_rows(lineage))),
        section("What to know", table(_FOUND, _finding_rows(lineage))),
        section("Answers", _answers(shown.answers, lineage)),
        *(f"## {title}\n\n![{title}]({name})" for title, name in shown.pictures.items()),
        section("How it was found", shown.search),
        section("Checklist", table(("Check", "Result", ""), _check_rows(lineage))),
        section("Inputs", table(_input_head(lineage), _input_rows(lineage))),
        section("How it was made", table(("", ""), _origin_rows(lineage))),
        section("Settings", table(("Field", "Value"), _setting_rows(lineage))),
        section("How to load it", loading),
    ]
    return redact("\n\n".join(part for part in parts if part) + "\n", limit=_MAX_CARD_BYTES)


def _front_matter(base: str, lineage: Lineage, *, full_model: bool) -> str:
    method = (lineage.method or "").lower()
    library = "transformers" if full_model else "peft"
    task = lineage.hyperparameters.get("task")
    preference = [task.lower()] if isinstance(task, str) and task in PREFERENCE_TASKS else []
    tags = ["tunery", library, *([method] if method else []), *preference, *(["merge"] if lineage.inputs else [])]
    lines = [
        "---",
        f"base_model: {json.dumps(base)}",
        f"library_name: {library}",
        "pipeline_tag: text-generation",
        "tags:",
    ]
    lines += [f"- {json.dumps(tag)}" for tag in dict.fromkeys(tags)]
    if not lineage.inputs and lineage.dataset is not None and lineage.dataset.uri.startswith("hf://"):
        lines += ["datasets:", f"- {json.dumps(lineage.dataset.uri.removeprefix('hf://'))}"]
    return "\n".join([*lines, "---"])


def _metric_rows(lineage: Lineage) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        (_METRIC_NAMES.get(name, name).format(start=_start(lineage)), number_text(value))
        for name, value in lineage.metrics.items()
        if name not in ("improvement", "improvementError")
    ]
    if "improvement" in lineage.metrics:
        error = lineage.metrics.get("improvementError")
        beside = " (± standard error)" if error is not None else ""
        rows.append((f"Change of the evaluation loss{beside}", change_text(-lineage.metrics["improvement"], error)))
    if lineage.stopped is not None and "evalLoss" not in lineage.metrics:
        rows.insert(0, (_METRIC_NAMES["evalLoss"], f"not measured after step {lineage.step}"))
    if lineage.verification is not None:
        check = lineage.verification
        rows.append((f"Largest error ({check.method})", check.max_error))
    return rows


def _start(lineage: Lineage) -> str:
    """Return what was measured before training, as `metrics` of `base…` have it."""
    return "the adapter it continues" if lineage.continued_from else "the base model"


def _answers(answers: Sequence[Answer], lineage: Lineage) -> str:
    """Return the first few of them side by side, each on one line."""
    if not answers:
        return ""
    rows = [
        tuple(_quoted(text) for text in (each.prompt, each.expected, each.before, each.after))
        for each in answers[:_SHOWN_ANSWERS]
    ]
    shown = table(
        ("Held-out row", "Its answer", _start(lineage).removeprefix("the ").capitalize(), "This adapter"), rows
    )
    return f"{shown}\n\nAll {len(answers)} are in `{ANSWERS_FILE}`. The likeliest token was taken each time."


def _quoted(text: str | None) -> str:
    """Return a text that Markdown shows as it is, its end where it is long."""
    if text is None:
        return "not asked"
    shown = text if len(text) <= _MAX_ANSWER else f"…{text[-_MAX_ANSWER:]}"
    return literal(shown) or "(nothing)"


def _finding_rows(lineage: Lineage) -> list[tuple[str, ...]]:
    return [
        (each.type, each.severity, str(each.step), each.message or _advice(each)) for each in lineage.findings or ()
    ]


def _advice(found: FindingStatus) -> str:
    return ": ".join(part for part in (found.field, found.suggest) if part)


def _check_rows(lineage: Lineage) -> list[tuple[str, ...]]:
    return [(each.name, each.result, each.message or "") for each in lineage.checks or ()]


def _input_head(lineage: Lineage) -> tuple[str, ...]:
    loss = ("Evaluation loss",) if "evalLoss" in lineage.metrics else ()
    return ("Adapter", "Weight", "Rank", *loss, "SHA-256")


def _input_rows(lineage: Lineage) -> list[tuple[str, ...]]:
    return [
        (
            _adapter(each),
            each.weight or "",
            str(each.rank or ""),
            *(
                (number_text(each.eval_loss) if each.eval_loss is not None else "",)
                if "evalLoss" in lineage.metrics
                else ()
            ),
            f"`{each.digest or ''}`",
        )
        for each in lineage.inputs
    ]


def _steps(lineage: Lineage) -> str | None:
    """Say how long it was trained, and where that is not what was planned, or not what is published."""
    if lineage.steps is None:
        return None
    planned = lineage.resolved.steps if lineage.resolved else None
    parts = [f"{lineage.steps} of {planned}" if planned else str(lineage.steps)]
    if lineage.epochs is not None:
        parts.append(f"{lineage.epochs:.3g} epochs")
    if lineage.step not in (None, lineage.steps):
        parts.append(f"published as it was after step {lineage.step}, where the evaluation loss was lowest")
    return ", ".join(parts)


def _adapter(record: MergeInputRecord) -> str:
    commit = f" at `{record.revision}`" if record.revision else ""
    notes = [
        f"rejected: {record.rejected}" if record.rejected else "",
        "made elsewhere, unverified origin" if record.origin else "",
    ]
    said = "; ".join(note for note in notes if note)
    return f"`{record.uri}`{commit}" + (f" ({said})" if said else "")


def _device(lineage: Lineage) -> str | None:
    """Return what it was trained on, and how many of that; None: not known."""
    resolved = lineage.resolved
    device, count = (resolved.device if resolved else None) or lineage.device, resolved.devices if resolved else None
    return f"{count} of {device}, {resolved.parallelism}" if resolved and device and (count or 1) > 1 else device


def _peak(lineage: Lineage) -> str | None:
    """Return the most memory of the process; what is judged of a container's leaves out what the kernel can drop."""
    if not lineage.peak_bytes:
        return None
    mapped = ", the files that it had mapped among it" if lineage.device == "cpu" else ""
    return human_bytes(lineage.peak_bytes) + mapped


def _origin_rows(lineage: Lineage) -> list[tuple[str, ...]]:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(lineage.versions.items()))
    rows = (
        ("Base model", _source(lineage.model)),
        ("Measured on" if lineage.inputs else "Data", _source(lineage.dataset)),
        *_data_rows(lineage.found),
        ("Method", lineage.method),
        ("Rank", lineage.rank),
        ("Steps", _steps(lineage)),
        ("Continued from", _adapter(lineage.continued_from) if lineage.continued_from else None),
        *(("Resumed from", f"`{each.uri}`") for each in lineage.resumed_from),
        ("Seed", lineage.seed),
        ("Device", _device(lineage)),
        ("Peak memory", _peak(lineage)),
        ("Image", f"`{lineage.image}`" if lineage.image else None),
        ("Libraries", versions),
    )
    return [(name, str(value)) for name, value in rows if value not in (None, "")]


def _data_rows(found: DatasetStatus | None) -> list[tuple[str, str]]:
    """Return what of the data was trained, and what of it is less than it could be."""
    if found is None:
        return []
    rows = [("Rows", str(found.rows))] if found.rows is not None else []
    if found.assistant_turns:
        rows.append(("Answers that count in the loss", f"{found.trained_turns} of {found.assistant_turns}"))
    if found.split_rows:
        rows.append(("Rows split", f"{found.split_rows}, since the chat template rewrites earlier turns"))
    return [*rows, *(("Note", warning) for warning in found.warnings or ())]


def _source(source: SourceRecord | None) -> str | None:
    if source is None:
        return None
    marks = [f"`{mark}`" for mark in (source.revision, source.digest) if mark]
    return " at ".join([f"`{source.uri}`", *marks])


def _setting_rows(lineage: Lineage) -> list[tuple[str, ...]]:
    settings = sorted(lineage.hyperparameters.items())
    return [(f"`{name}`", value if isinstance(value, str) else json.dumps(value)) for name, value in settings]


def _load_adapter(name: str, base: str, uri: str, lineage: Lineage) -> str:
    loader = lineage.loader or "AutoModelForCausalLM"
    folder, place = _folder(uri), _base_place(base, uri, lineage)
    peft = f"""{_copies(place, uri, folder, lineage)}

```python
from peft import PeftModel
from transformers import {loader}, AutoTokenizer

base = {loader}.from_pretrained({json.dumps(place)})
model = PeftModel.from_pretrained(base, {json.dumps(folder)})
tokenizer = AutoTokenizer.from_pretrained({json.dumps(place)})
```"""
    if lineage.rejected:
        return peft
    unservable = method_problem(lineage.method)
    if unservable is not None:
        return f"{peft}\n\nNo AdapterServer and no vLLM serves it: {unservable.message}. {unservable.remedy.text}."
    if says_adapted(lineage.hyperparameters.get(EXPERTS)):
        return (
            f"{peft}\n\nThe experts of the mixture are adapted as PEFT's target_parameters; not every vLLM serves that."
        )
    allowed = next((rank for rank in ENGINE_RANKS if rank >= (lineage.rank or 0)), None)
    if allowed is None:
        return f"{peft}\n\nvLLM serves ranks up to {ENGINE_RANKS[-1]}; merge this adapter into its base model there."
    rank = f" --max-lora-rank {allowed}" if lineage.rank else ""
    named = f" --served-model-name {base}" if place != base else ""
    return f"""{peft}

An AdapterServer for {base} with `engine.maxRank` of at least {allowed} serves it {_entry(name, uri)}

So does vLLM alone, from the copy:

```sh
vllm serve {place}{named} --enable-lora{rank} --lora-modules {name}={folder}
```"""


def _entry(name: str, uri: str) -> str:
    """Return how an AdapterServer gets the adapter: it reads S3 only."""
    if not uri.startswith("s3://"):
        return "from S3: upload the folder first."
    return f"""with this entry of `spec.adapters`:

```yaml
- {{name: {name}, uri: {json.dumps(uri)}}}
```"""


def _base_place(base: str, uri: str, lineage: Lineage) -> str:
    """Return what loads the base: its id where it came from a hub, else the folder of a copy."""
    source = lineage.model.uri if lineage.model else ""
    if source.startswith("hf://"):
        return source.removeprefix("hf://").strip("/")
    if not source:
        return base
    return "./base" if _folder(uri) != "./base" else "./base-model"


def _copies(place: str, uri: str, folder: str, lineage: Lineage) -> str:
    """Say what has to lie on the disk."""
    if lineage.model is None or not place.startswith("./"):
        return f"Copy `{uri}` to `{folder}`, then:"
    return f"Copy `{uri}` to `{folder}`, and its base model, which lies at `{lineage.model.uri}`, to `{place}`, then:"


def _folder(uri: str) -> str:
    """Return what a copy of a place is called."""
    return "./" + (uri.rstrip("/").rpartition("/")[2] or "adapter")


def _load_model(uri: str, lineage: Lineage) -> str:
    loader = lineage.loader or "AutoModelForCausalLM"
    folder = _folder(uri)
    return f"""Copy `{uri}` to `{folder}`, then:

```python
from transformers import {loader}, AutoTokenizer

model = {loader}.from_pretrained({json.dumps(folder)})
tokenizer = AutoTokenizer.from_pretrained({json.dumps(folder)})
```

```sh
vllm serve {folder}
```"""
