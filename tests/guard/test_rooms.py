"""The house's ceilings: rooms, arrows, circles and doors are read from the imports, and none rises unseen."""

from __future__ import annotations

from pathlib import Path

import pytest

from rooms import ceilings
from rooms.__main__ import main
from rooms.house import House, survey
from rooms.imports import read_package
from rooms.index import index

FILES = {
    "__init__.py": '"""A package."""\n',
    "__main__.py": "from house.tasks import run\nimport os\n",
    "tasks/__init__.py": "",
    "tasks/run.py": "def run():\n    from house.model.load import load\n    import torch\n    import json\n",
    "model/__init__.py": "",
    "model/load.py": "from house.errors import Mistake\nfrom house.model import sizes\n",
    "model/sizes.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.tasks.run import run\n",
    "errors.py": "class Mistake(Exception): ...\n",
}


def house_of(folder: Path, **changed: str) -> House:
    """Write a package, with the text of some modules (`model_load`) changed, and survey it."""
    for name, text in FILES.items():
        path = folder / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(changed.get(name.removesuffix(".py").replace("/", "_"), text))
    return survey(read_package(folder / "house"))


def test_a_package_is_read_as_it_is_built(tmp_path: Path) -> None:
    house = house_of(tmp_path)
    assert house.rooms == ("__main__", "errors", "model", "tasks")
    assert dict(house.arrows) == {
        ("__main__", "tasks"): 1,
        ("tasks", "model"): 1,
        ("model", "errors"): 1,
        ("model", "tasks"): 1,
    }
    assert house.circles == (("model", "tasks"),)
    assert house.against == (("model", "tasks"),)
    assert house.floors == (("errors",), ("model",), ("tasks",), ("__main__",))
    assert dict(house.late) == {("tasks", "model"): 1, ("tasks", "torch"): 1}
    assert house.type_checking == 1


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        (
            {"errors": "def late():\n    from house.model import load\n"},
            [
                "arrows is 5, may be at most 4",
                "against is 2, may be",
                "late_imports is 3",
                "errors -> model is no door",
            ],
        ),
        (
            {"model_sizes": ""},
            ["arrows has fallen from 4 to 3", "against has fallen", "circles has fallen", "type_checking has fallen"],
        ),
        (
            {"tasks_run": "from house.model.load import load\n\ndef run():\n    import torch\n"},
            ["late_imports has fallen from 2 to 1", "the door tasks -> model is used no more"],
        ),
    ],
)
def test_what_rises_and_what_falls_is_said(tmp_path: Path, changed: dict[str, str], said: list[str]) -> None:
    before, after = house_of(tmp_path / "before"), house_of(tmp_path / "after", **changed)
    held = ceilings.Ceiling(before.figures(), ceilings.doors(before))
    found = list(ceilings.problems("house", after, held))
    assert len(found) == len(said)
    assert [(problem, words) for problem, words in zip(found, said, strict=True) if words not in problem] == []


def test_a_ceiling_is_lowered_and_never_raised(tmp_path: Path) -> None:
    before = house_of(tmp_path / "before")
    worse_and_better = house_of(tmp_path / "after", model_sizes="", errors="def late():\n    import triton\n")
    lower = ceilings.lowered(worse_and_better, ceilings.Ceiling(before.figures(), ceilings.doors(before)))
    assert (lower.figures["arrows"], lower.figures["circles"], lower.figures["late_imports"]) == (3, 0, 2)
    assert lower.doors == {"tasks -> model", "tasks -> torch"}
    ceilings.write({"house": lower}, tmp_path / "ceilings.toml")
    assert ceilings.read(tmp_path / "ceilings.toml") == {"house": lower}


def test_anyone_can_look_at_a_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tunery_operator"]) == 0
    shown = capsys.readouterr().out
    assert "reconcile: " in shown
    with pytest.raises(SystemExit):
        main(["tunery"])
    assert "no package tunery; there are tunery_api" in capsys.readouterr().err


def test_every_file_says_what_it_is_for(tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    templates.mkdir()
    (templates / "service.yaml").write_text("{{- /* Where pods post. And more. */ -}}\nkind: Service\n")
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").write_text('"""A house."""\n')
    (package / "door.py").write_text('"""A door; more | of it.\n\nNot this."""\n')
    page = index({"house": package}, templates)
    assert "| `door.py` | A door; more \\| of it. |\n" in page
    assert "| `service.yaml` | Where pods post. |\n" in page
    (templates / "role.yaml").write_text("kind: Role\n")
    with pytest.raises(ValueError, match=r"role\.yaml says nothing of itself"):
        index({"house": package}, templates)
    (templates / "role.yaml").unlink()
    (package / "window.py").write_text("import os\n")
    with pytest.raises(ValueError, match=r"window\.py says nothing of itself"):
        index({"house": package}, templates)
