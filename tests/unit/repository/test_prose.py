"""The prose check counts what it is for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tools import prose

LONG = "word " * 27


@pytest.mark.parametrize(
    ("page", "rules"),
    [
        pytest.param("The gateway returns 503 and retries later.", [], id="plain"),
        pytest.param("Whoever asks is told so by the door.", ["private wording"] * 3, id="private"),
        pytest.param(f"A sentence of {LONG}ends here.", ["sentence of more than 26 words"], id="long"),
        pytest.param(f"| {LONG} |", ["table cell of more than 25 words"], id="cell"),
        pytest.param("```sh\necho somebody is told what nobody has mended\n```", [], id="code block"),
    ],
)
def test_a_page(page: str, rules: list[str], tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(page)
    assert [rule for rule, _ in prose.of_page(path)] == rules


def test_a_module(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(f'"""What nobody here has told anew."""\nTEXT = f"{LONG}and {{1}} ends"\n')
    rules = [rule for rule, _ in prose.of_module(path)]
    assert rules == ["private wording in a docstring"] * 2 + ["message sentence of more than 26 words"]


def test_a_description(tmp_path: Path) -> None:
    schema = {
        "properties": {"uri": {"description": "Where it lies."}, "key": {"description": "The key of the Secret."}}
    }
    crd = {"spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}}
    path = tmp_path / "crd.yaml"
    path.write_text(yaml.safe_dump(crd))
    assert [text for _, text in prose.of_crd(path)] == ["Where it lies."]
