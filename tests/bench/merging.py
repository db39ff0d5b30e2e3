"""Measure merging side by side with PEFT: time, and peak memory above the imports, each in a process of its own.

    python -m bench.merging [--matrix 4096] [--mergekit /other/venv/bin/python]

Prints the whole table; what touches the disk is measured three times, after the disk has come to rest, and the median
counts. mergekit comes into the table where a Python that has it is named. It needs 10 GB of disk, for a while.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RANK = 16
SHAPES = {"0.1B": (768, 3072, 12, 12), "1B": (2048, 8192, 16, 32)}
"""Model to hidden size, inner size, layers, heads."""
VOCABULARY = 32_000
REPEATS = 3


def status_bytes(field: str) -> int:
    """Return a line of /proc/self/status in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measured(work: Callable[[], object]) -> dict[str, float]:
    """Run `work`; return its seconds and the peak of resident memory above what was there before."""
    Path("/proc/self/clear_refs").write_text("5")
    before, start = status_bytes("VmRSS"), time.perf_counter()
    work()
    return {"seconds": time.perf_counter() - start, "peak": status_bytes("VmHWM") - before}


def make_base(folder: Path, size: str) -> int:
    """Write a Llama-like model with random bfloat16 weights, a layer for each shard; return its bytes."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tunery_trainer.merging.safetensors_stream import Layout, Writer

    hidden, inner, layers, heads = SHAPES[size]
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    groups: dict[str, list[Layout]] = {}
    for name, shape in shapes.items():
        groups.setdefault(".".join(name.split(".")[:3]), []).append(Layout(name, torch.bfloat16, shape))
    names = {group: f"model-{i:05}-of-{len(groups):05}.safetensors" for i, group in enumerate(groups, 1)}
    for group, layouts in groups.items():
        with Writer(folder / names[group], layouts) as writer:
            for layout in layouts:
                writer.write((torch.randn(layout.shape) * 0.02).bfloat16())
    weight_map = {layout.name: names[group] for group, layouts in groups.items() for layout in layouts}
    size_bytes = sum(layout.size for layouts in groups.values() for layout in layouts)
    index = {"metadata": {"total_size": size_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return size_bytes


def make_adapter(folder: Path, size: str, seed: int) -> int:
    """Write a float32 adapter of rank 16 on all linear layers; return its bytes."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(seed)
    hidden, inner, layers, _ = SHAPES[size]
    shapes = {f"self_attn.{n}_proj": (hidden, hidden) for n in "qkvo"}
    shapes |= {"mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    tensors = {}
    for layer in range(layers):
        for name, (out, width) in shapes.items():
            prefix = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{prefix}.lora_A.weight"] = torch.randn(RANK, width) * 0.02
            tensors[f"{prefix}.lora_B.weight"] = torch.randn(out, RANK) * 0.02
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    modules = sorted({name.split(".")[1] for name in shapes})
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 32, "target_modules": modules}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "base"}))
    return sum(tensor.nbytes for tensor in tensors.values())


def linear_ours(folder: Path, size: int) -> dict[str, float]:
    """Two adapters of rank 16 on one square matrix, back to rank 16."""
    import torch

    from tunery_trainer.merging.deltas import Delta, Options
    from tunery_trainer.merging.methods.linear import factor

    del folder
    deltas = [Delta("m", str(i), 0.5, torch.randn(RANK, size), torch.randn(size, RANK), 1.0) for i in range(2)]
    factor(deltas, Options(rank=RANK))
    repeats = 5
    result = measured(lambda: [factor(deltas, Options(rank=RANK)) for _ in range(repeats)])
    return {**result, "seconds": result["seconds"] / repeats}


def linear_peft(folder: Path, size: int) -> dict[str, float]:
    """The same by PEFT's combination_type="svd"."""
    import torch
    from peft import get_peft_model

    del folder
    model = get_peft_model(torch.nn.Sequential(torch.nn.Linear(size, size, bias=False)), _config(), "one")
    model.add_adapter("two", _config())
    return measured(
        lambda: model.base_model.add_weighted_adapter(
            ["one", "two"], [0.5, 0.5], "merged", combination_type="svd", svd_rank=RANK
        )
    )


def _config() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=RANK, target_modules=["0"], init_lora_weights=False)


def base_ours(folder: Path, size: str) -> dict[str, float]:
    """An adapter into its base, streaming."""
    from tunery_trainer.merging.adapter_files import open_adapter
    from tunery_trainer.merging.base_model import open_checkpoint
    from tunery_trainer.merging.files import LocalFiles
    from tunery_trainer.merging.into_base import merge_into_base

    base, adapter = LocalFiles(folder / f"base-{size}"), LocalFiles(folder / f"adapter-{size}-1")
    return measured(lambda: merge_into_base(open_checkpoint(base), open_adapter(adapter), folder / "out"))


def base_peft(folder: Path, size: str) -> dict[str, float]:
    """The same by merge_and_unload and save_pretrained."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def work() -> None:
        base = AutoModelForCausalLM.from_pretrained(folder / f"base-{size}", dtype="auto")
        model = PeftModel.from_pretrained(base, folder / f"adapter-{size}-1")
        model.merge_and_unload().save_pretrained(folder / "out")

    return measured(work)


def base_mergekit(folder: Path, size: str) -> dict[str, float]:
    """The same by mergekit's passthrough of base+adapter."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    model = f"{folder}/base-{size}+{folder}/adapter-{size}-1"
    config = MergeConfiguration(merge_method="passthrough", models=[{"model": model}], dtype="bfloat16")
    options = MergeOptions(lora_merge_cache=str(folder / "out" / "cache"), copy_tokenizer=False)
    return measured(lambda: run_merge(config, str(folder / "out"), options))


def combine_ours(folder: Path, size: str, method: str) -> dict[str, float]:
    """Two adapters into one, from their files."""
    import torch

    from tunery_api.adaptermerge import MergeMethod
    from tunery_trainer.merging.adapter_files import open_adapter
    from tunery_trainer.merging.combine import combine
    from tunery_trainer.merging.deltas import Options
    from tunery_trainer.merging.files import LocalFiles

    def work() -> None:
        adapters = [open_adapter(LocalFiles(folder / f"adapter-{size}-{i}"), 0.5) for i in (1, 2)]
        rank = RANK if method == "Linear at a rank" else None
        name = MergeMethod.LINEAR if method.startswith("Linear") else MergeMethod(method)
        combine(adapters, name, Options(rank=rank), folder / "combined", torch.float32)

    return measured(work)


CASES: dict[str, Callable[..., dict[str, float]]] = {
    "linear_ours": linear_ours,
    "linear_peft": linear_peft,
    "base_ours": base_ours,
    "base_peft": base_peft,
    "base_mergekit": base_mergekit,
    "combine_ours": combine_ours,
}


def in_process(case: str, folder: Path, *arguments: object, python: str = sys.executable) -> dict[str, float]:
    """Run one case in a fresh process; return what it measured."""
    command = [python, __file__, "--case", case, "--arguments", json.dumps([str(folder), *arguments])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def row(*cells: object) -> None:
    """Print a line of the table."""
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def report(folder: Path, matrix: int, mergekit: str | None) -> None:
    """Print the whole table in Markdown."""
    row("what", "ours", "PEFT", "ratio", *(["mergekit", "ratio"] if mergekit else []))
    row(*["---"] * (6 if mergekit else 4))
    ours, theirs = in_process("linear_ours", folder, matrix), in_process("linear_peft", folder, matrix)
    times = theirs["seconds"] / ours["seconds"]
    name = f"Linear at rank {RANK}, one {matrix} × {matrix} matrix"
    row(name, f"{ours['seconds']:.4f} s", f"{theirs['seconds']:.1f} s", f"{times:.0f} ×")
    for size in SHAPES:
        weights = make_base(folder / f"base-{size}", size)
        adapters = sum(make_adapter(folder / f"adapter-{size}-{i}", size, i) for i in (1, 2))
        _base_rows(folder, size, weights, mergekit)
        for method in ("Linear", "Linear at a rank", "TIES", "DARETIES"):
            result = in_process("combine_ours", folder, size, method)
            share = f"peak {result['peak'] / adapters:.2f} × the adapters' {adapters / 2**20:.0f} MiB"
            row(f"{method}, two adapters of a {size} model", f"{result['seconds']:.1f} s, {share}", "", "")
        subprocess.run(["rm", "-rf", str(folder / f"base-{size}")], check=True)


def _base_rows(folder: Path, size: str, weights: int, mergekit: str | None) -> None:
    programs = {"base_ours": sys.executable, "base_peft": sys.executable}
    if mergekit:
        programs["base_mergekit"] = mergekit
    runs: dict[str, list[dict[str, float]]] = {case: [] for case in programs}
    for _ in range(REPEATS):
        for case, python in programs.items():
            subprocess.run(["rm", "-rf", str(folder / "out")], check=True)
            # What the case before left to write or to free would be counted to this one.
            os.sync()
            time.sleep(2)
            runs[case].append(in_process(case, folder, size, python=python))
    subprocess.run(["rm", "-rf", str(folder / "out")], check=True)
    for field, title, text in (
        ("seconds", f"Into a {size} base", lambda value: f"{value:.2f} s"),
        ("peak", f"Peak memory into a {size} base ({weights / 2**20:.0f} MiB)", lambda value: _memory(value, weights)),
    ):
        medians = [statistics.median(run[field] for run in measured_runs) for measured_runs in runs.values()]
        cells = [text(medians[0])]
        for other in medians[1:]:
            cells += [text(other), f"{other / medians[0]:.1f} ×"]
        row(title, *cells)


def _memory(value: float, weights: int) -> str:
    return f"{value / 2**20:.0f} MiB, {value / weights:.2f} × the base"


def main() -> None:
    """Print the table, or run one case for the process that asked for it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=sorted(CASES))
    parser.add_argument("--arguments", default="[]")
    parser.add_argument("--matrix", type=int, default=4096, help="side of the matrix of the SVD comparison")
    parser.add_argument("--mergekit", help="a Python that has mergekit")
    options = parser.parse_args()
    if options.case:
        folder, *rest = json.loads(options.arguments)
        print(json.dumps(CASES[options.case](Path(folder), *rest)))
        return
    with tempfile.TemporaryDirectory() as folder:
        report(Path(folder), options.matrix, options.mergekit)


if __name__ == "__main__":
    main()
