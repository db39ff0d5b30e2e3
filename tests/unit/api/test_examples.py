"""Every manifest in docs/examples passes the validation of operator and trainer, and keeps to the demo's names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tunery_api.lorajob import LoRAJobSpec
from tunery_api.methods import Method, Preset, TrainingTask
from tunery_api.validation import parse_lorajob

from kit.examples import EXAMPLES, documents
from kit.installation import ROOT
from kit.shown import blocks
from kit.story import run_here
from kit.validations import PARSERS


def named_documents() -> list[tuple[str, dict[str, Any]]]:
    """Return every object of every example with an id: `<file>-<kind>-<name>`."""
    return [
        (f"{path.stem}-{document['kind']}-{document['metadata']['name']}", document)
        for path in EXAMPLES
        for document in documents(path)
    ]


DOCUMENTS = named_documents()


def lorajobs() -> list[LoRAJobSpec]:
    return [parse_lorajob(document) for _, document in DOCUMENTS if document["kind"] == "LoRAJob"]


@pytest.mark.parametrize("document", [pytest.param(document, id=name) for name, document in DOCUMENTS])
def test_the_example_is_valid(document: dict[str, Any]) -> None:
    spec = PARSERS[document["kind"]](document)
    if document["kind"] == "AdapterServer":
        assert spec.adapter_secret_ref.name == "s3"
        return
    assert spec.output.uri == f"s3://adapters/{document['metadata']['name']}"
    assert spec.output.secret_ref is not None
    assert spec.output.secret_ref.name == "s3"


def test_first_job_md_shows_its_example_and_changes_nothing() -> None:
    (example,) = documents(ROOT / "docs" / "examples" / "first-job.yaml")
    (shown,) = (block.text for block in blocks(ROOT / "docs" / "first-job.md") if "apiVersion:" in block.text)
    assert yaml.safe_load(shown) == example


def test_every_method_has_an_example() -> None:
    assert {spec.method for spec in lorajobs()} >= set(Method) - {Method.AUTO}


def test_every_task_has_an_example() -> None:
    assert {spec.task for spec in lorajobs()} == set(TrainingTask)


def test_every_preset_has_an_example() -> None:
    assert {spec.preset for spec in lorajobs()} >= set(Preset)


def test_names_are_unique_so_that_the_whole_folder_can_be_applied() -> None:
    names = [(document["kind"], document["metadata"]["name"]) for _, document in DOCUMENTS]
    assert len(names) == len(set(names))


def test_every_reference_names_an_example() -> None:
    fields = {"loraJobRef": "LoRAJob", "adapterMergeRef": "AdapterMerge"}
    names = {(document["kind"], document["metadata"]["name"]) for _, document in DOCUMENTS}
    referenced = set()
    for _, document in DOCUMENTS:
        spec = document["spec"]
        for entry in [*spec.get("adapters", []), spec.get("continueFrom", {})]:
            referenced |= {(kind, entry[field]["name"]) for field, kind in fields.items() if field in entry}
    assert {kind for kind, _ in referenced} == set(fields.values())
    assert referenced <= names


def test_what_the_docs_quote_of_a_check_is_what_it_says_of_the_example_of_a_sweep(tmp_path: Path) -> None:
    manifest = (ROOT / "docs" / "examples" / "sweep.yaml").read_text().replace("s3://", f"file://{tmp_path}/")
    (tmp_path / "sweep.yaml").write_text(manifest)
    said = run_here("check", tmp_path / "sweep.yaml").stdout.splitlines()
    block = (ROOT / "docs" / "sweeps.md").read_text().partition("```\nSweep      up to")[2].partition("```")[0]
    quoted = [line for line in f"Sweep      up to{block}".splitlines() if line != "…"]
    assert len(quoted) == 3
    assert [line for line in said if line in quoted] == quoted
