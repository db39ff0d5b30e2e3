"""Merge two adapters that were trained for two tasks: what does each method lose, beside PEFT's own?

    python -m bench.merge_quality [--steps 20] [--rows 16] [--keep folder]

Two LoRAJobs run by the trainer's command line on SmolLM2, on the same sentences: one writes them as fields, one
as a headline. Then the adapters are merged by each method, rank and density, and the loss on rows of each task that
nobody trained on is measured with plain PEFT. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Final

from tools.cluster import model

Json = dict[str, Any]

TASKS: Final = ("fields", "headline")
TRAINED: Final = 200
HELD_OUT: Final = 16
"""Rows of each task."""
_NAMES: Final = ("Anna", "Boris", "Chloe", "Dmitri", "Elena", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Leo")
_THINGS: Final = ("apples", "lamps", "books", "chairs", "ropes", "candles", "plates", "shirts", "clocks", "maps")
_TOWNS: Final = ("Oslo", "Turin", "Ghent", "Porto", "Riga", "Lyon", "Graz", "Malmo", "Bern", "Cork")


def rows(task: str, count: int, seed: int) -> Iterator[Json]:
    """Yield rows of one task; both tasks draw from the same sentences."""
    draw = random.Random(f"{task}/{seed}")
    for _ in range(count):
        name, thing, town, number = draw.choice(_NAMES), draw.choice(_THINGS), draw.choice(_TOWNS), draw.randint(2, 99)
        asked = f"{name} bought {number} {thing} in {town}."
        if task == "fields":
            answer = f"town={town}; item={thing}; count={number}; buyer={name}"
        else:
            answer = f"{town.upper()}: {name.upper()} TAKES {number} {thing.upper()}!"
        turns = (("system", f"As {task}."), ("user", asked), ("assistant", answer))
        yield {"messages": [{"role": role, "content": text} for role, text in turns]}


def write_rows(folder: Path) -> None:
    """Write train-*.jsonl and test-*.jsonl of each task."""
    for task in TASKS:
        for kind, count, seed in (("train", TRAINED, 1), ("test", HELD_OUT, 2)):
            lines = [json.dumps(row) for row in rows(task, count, seed)]
            (folder / f"{kind}-{task}.jsonl").write_text("\n".join(lines) + "\n")


def job(folder: Path, task: str, steps: int) -> Json:
    """Return the LoRAJob of one task: rank 16 on the queries and values."""
    spec: Json = {
        "model": {"uri": model.ensure().as_uri(), "servedName": "SmolLM2-135M-Instruct"},
        "dataset": {
            "uri": f"file://{folder}/train-{task}.jsonl",
            "evaluation": {"uri": f"file://{folder}/test-{task}.jsonl"},
        },
        "method": "LoRA",
        "lora": {"rank": 16, "alpha": 32, "targetModules": ["query-value"]},
        "training": {
            "maxSteps": steps,
            "batchSize": 2,
            "gradientAccumulation": 1,
            "maxLength": 128,
            "packing": False,
            "precision": "BFloat16",
            "gradientCheckpointing": False,
            "learningRate": 2e-3,
        },
        "checkpoint": {"everySteps": 10_000},
        "output": {"uri": f"file://{folder}/{task}"},
        "resources": {"gpus": 0},
    }
    return {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRAJob", "metadata": {"name": task}, "spec": spec}


def train(folder: Path, task: str, steps: int) -> None:
    """Train and publish the adapter of one task, by the trainer's command line."""
    path = folder / f"{task}.yaml"
    path.write_text(json.dumps(job(folder, task, steps)))
    command = [sys.executable, "-m", "tunery_trainer", "run", str(path), "--work-dir", str(folder / f"{task}.work")]
    subprocess.run(command, check=True, stdout=sys.stderr, env=os.environ | {"HF_HUB_OFFLINE": "1"})


class Bench:
    """The base model and the rows, loaded once; what is merged lies below `folder`."""

    def __init__(self, folder: Path, count: int) -> None:
        import torch
        from datasets import concatenate_datasets
        from transformers import AutoModelForCausalLM

        from tunery_trainer.data.options import DataOptions
        from tunery_trainer.data.prepare import prepare
        from tunery_trainer.model.load import load_tokenizer

        self.folder = folder
        self.base = AutoModelForCausalLM.from_pretrained(model.ensure(), dtype=torch.float32).eval()
        tokenizer = load_tokenizer(model.ensure())
        self.pad = int(tokenizer.pad_token_id)
        self.rows = {}
        for task in TASKS:
            options = DataOptions(path=f"test-{task}.jsonl", packing=False, max_length=128)
            data = prepare(folder, options, tokenizer, folder / "prepared")
            self.rows[task] = concatenate_datasets([data.train, data.evaluation]).select(range(count))

    def losses(self, adapted: Any) -> list[float]:
        """Return the loss on each task's held-out rows."""
        from tunery_trainer.losses.evaluation import held_out_loss

        return [held_out_loss(adapted, self.rows[task], self.pad) for task in TASKS]

    def of_folder(self, folder: Path) -> list[float]:
        """Return the losses with the adapter in `folder`, loaded by plain PEFT."""
        from peft import PeftModel

        adapted = PeftModel.from_pretrained(self.base, str(folder))
        losses = self.losses(adapted)
        self.base = adapted.unload()
        return losses

    def ours(self, case: Case) -> tuple[list[float], int, float]:
        """Return losses, rank and largest relative error of a merge by the product."""
        import torch

        from tunery_api.adaptermerge import MergeMethod
        from tunery_trainer.merging.adapter_files import open_adapter
        from tunery_trainer.merging.combine import combine
        from tunery_trainer.merging.deltas import Options
        from tunery_trainer.merging.files import LocalFiles

        adapters = [open_adapter(LocalFiles(self.folder / task), float(case.weight)) for task in TASKS]
        target = self.folder / "merged"
        target.mkdir(exist_ok=True)
        options = Options(Fraction(case.density or "1"), rank=case.rank)
        result = combine(adapters, MergeMethod(case.method), options, target, torch.float32)
        return self.of_folder(target), result.rank, result.max_error

    def peft(self, case: Case) -> list[float]:
        """Return the losses of a merge by PEFT's add_weighted_adapter."""
        from peft import PeftModel

        first, second = TASKS
        adapted = PeftModel.from_pretrained(self.base, str(self.folder / first), adapter_name=first)
        adapted.load_adapter(str(self.folder / second), second)
        options: Json = {"density": float(case.density)} if case.density else {}
        adapted.base_model.add_weighted_adapter(
            list(TASKS), [float(case.weight)] * 2, "merged", combination_type=case.method, svd_rank=case.rank, **options
        )
        adapted.set_adapter("merged")
        losses = self.losses(adapted)
        self.base = adapted.unload()
        return losses


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    method: str
    weight: str = "1"
    density: str | None = None
    rank: int | None = None
    """None: left open."""


OURS: Final = (
    *(Case("Linear", weight) for weight in ("0.5", "1")),
    Case("Linear", "1", rank=16),
    *(Case("TIES", "1", "0.5", rank) for rank in (4, 8, 16, 64, None)),
    *(Case("TIES", "1", "0.2", rank) for rank in (16, 128, None)),
    *(Case("KnOTSTIES", "1", density) for density in ("0.2", "0.5", "0.8")),
    *(Case("DARETIES", "1", "0.5", rank) for rank in (16, None)),
    Case("KnOTSDARETIES", "1", "0.5"),
    Case("DARELinear", "0.5", "0.5", 16),
    Case("MagnitudePrune", "0.5", "0.5", 16),
)
PEFTS: Final = (
    Case("svd", "0.5", rank=16),
    *(Case("ties_svd", "1", density, 16) for density in ("0.2", "0.5")),
    Case("dare_ties_svd", "1", "0.5", 16),
)


def row(*cells: object) -> None:
    """Print a line of the table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def line(by: str, case: Case, rank: str, error: str, losses: Sequence[float]) -> None:
    """Print the line of one merge."""
    shown = [f"{loss:.3f}" for loss in (*losses, sum(losses) / len(losses))]
    row(f"`{case.method}`" if by == "PEFT" else case.method, case.weight, case.density or "", rank, error, *shown)


def report(folder: Path, count: int) -> None:
    """Print the table: base, inputs, every merge of ours, and PEFT's."""
    bench = Bench(folder, count)
    row("method", "weight", "density", "rank", "rank error", *TASKS, "mean")
    row(*["---"] * 8)
    line("", Case("base model", ""), "", "", bench.losses(bench.base))
    for task in TASKS:
        line("", Case(f"adapter of {task}", ""), "16", "", bench.of_folder(folder / task))
    for case in OURS:
        losses, rank, error = bench.ours(case)
        line("ours", case, f"{rank}, open" if case.rank is None else str(rank), f"{error:.2f}", losses)
    for case in PEFTS:
        line("PEFT", case, str(case.rank), "", bench.peft(case))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is not there yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rows", type=int, default=HELD_OUT, help="held-out rows of each task that are measured")
    parser.add_argument("--keep", type=Path, help="folder that the adapters are kept in, and taken from where they are")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(folder)
        for task in TASKS:
            if not (folder / task / "manifest.json").exists():
                train(folder, task, options.steps)
        report(folder, options.rows)


if __name__ == "__main__":
    main()
