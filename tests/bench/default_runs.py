"""What the defaults learn: runs of several sizes with nothing but model, data and output in the manifest.

    python -m bench.default_runs [--rows 200 1000 5000] [--dropout 0]

SmolLM2-135M-Instruct on questions about functions of installed Python packages and the first sentence of their
documentation. Trains through the trainer's own command line; prints the held-out loss of the base and of the adapter as
a table in Markdown, and ends with an error where an adapter is not at least 10 % below its base. `--dropout` adds
lora.dropout to the manifests, to compare with the default.
"""

from __future__ import annotations

import argparse
import ast
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import torch

from tools.cluster import model

GOAL: Final = 0.10
_PACKAGES: Final = ("pandas", "sklearn", "sympy")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", nargs="*", type=int, default=[200, 1000, 5000])
    parser.add_argument("--dropout", type=float)
    options = parser.parse_args()
    rows, failed = shuffled_rows(), False
    print("| rows | dropout | steps | passes | base | tuned | | minutes |\n|---|---|---|---|---|---|---|---|")
    for count in options.rows:
        if len(rows) < count:
            raise SystemExit(f"only {len(rows)} rows could be made")
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            lineage = run(Path(folder), rows[:count], options.dropout)
        losses, settings = lineage["metrics"], lineage["hyperparameters"]
        better = 1 - losses["evalLoss"] / losses["baseEvalLoss"]
        failed |= better < GOAL
        numbers = (f"{losses[name]:.3f}" for name in ("baseEvalLoss", "evalLoss"))
        steps = lineage["resolved"]["steps"]
        cells = (
            count,
            settings.get("lora.dropout"),
            steps,
            settings.get("training.epochs"),
            *numbers,
            f"-{better:.1%}",
        )
        print("|", " | ".join(map(str, cells)), f"| {(time.monotonic() - began) / 60:.0f} |", flush=True)
    sys.exit(failed)


def run(folder: Path, rows: list[dict[str, str]], dropout: float | None) -> dict[str, Any]:
    """Train on `rows` and return the lineage of the published adapter."""
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec: dict[str, Any] = {
        "model": {"uri": model.ensure().as_uri()},
        "dataset": {"uri": (folder / "rows.jsonl").as_uri()},
        "output": {"uri": (folder / "out").as_uri()},
    }
    if dropout is not None:
        spec["lora"] = {"dropout": dropout}
    manifest = {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRAJob", "metadata": {"name": "defaults"}, "spec": spec}
    (folder / "job.yaml").write_text(json.dumps(manifest))
    command = [sys.executable, "-m", "tunery_trainer", "run", "job.yaml", "--work-dir", "work"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    lineage: dict[str, Any] = json.loads((folder / "out" / "manifest.json").read_text())["lineage"]
    return lineage


def shuffled_rows() -> list[dict[str, str]]:
    """Return every documented function of some packages of this environment, in the same random order each time."""
    rows = {row["prompt"]: row for row in _documented(Path(torch.__file__).parents[1])}
    ordered = [rows[key] for key in sorted(rows)]
    random.Random(0).shuffle(ordered)
    return ordered


def _documented(packages: Path) -> Iterator[dict[str, str]]:
    for file in sorted(path for name in _PACKAGES for path in (packages / name).rglob("*.py")):
        module = ".".join(file.relative_to(packages).with_suffix("").parts)
        try:
            tree = ast.parse(file.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue  # not of this Python
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            sentence = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
            if 30 <= len(sentence) <= 300:
                call = f"{node.name}({', '.join(argument.arg for argument in node.args.args)})"
                yield {"prompt": f"What does `{call}` of {module} do?", "completion": sentence}


if __name__ == "__main__":
    main()
