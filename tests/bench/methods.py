"""Every method, quantisation and start that is allowed, 20 steps on SmolLM2: does it learn, what does it cost?

    python -m bench.methods [--only QLoRA AdaLoRA-NF4] [--steps 20]

Each case is a LoRAJob that runs by the trainer's command line in a process of its own, on the same rows in the same
order. Afterwards the published folder is loaded with plain transformers and plain PEFT. Prints a table in Markdown;
ends with an error if a case does not lower the loss on the held-out rows, or if plain PEFT gives other logits.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from bench.merging import status_bytes
from tools.cluster import dataset, model

Json = dict[str, Any]

TOLERANCE: Final = 1e-5
"""Largest difference of a logit between the trained model and the published adapter in plain PEFT, as a share of
the largest logit: AdaLoRA's pruned triplets are left out of the files, and shorter sums round otherwise."""
_FOUR_BITS: Final = ("NF4", "FP4")
_ANY: Final = (*_FOUR_BITS, "Int8")


def cases() -> dict[str, Json]:
    """Return the blocks of the spec of each case, by name; what is quantised says how."""
    found: dict[str, Json] = {name: {"method": name} for name in ("LoRA", "DoRA")}
    kinds = {
        "QLoRA": _ANY,
        "QDoRA": _FOUR_BITS,
        **dict.fromkeys(("AdaLoRA", "IA3", "PrefixTuning", "PromptTuning"), _ANY),
    }
    for method, quantizations in kinds.items():
        if method not in ("QLoRA", "QDoRA"):
            found[method] = {"method": method}
        for kind in quantizations:
            found[f"{method}-{kind}"] = {"method": method, "quantization": {"type": kind}}
    found["QLoRA-NF4-single"] = {"method": "QLoRA", "quantization": {"type": "NF4", "doubleQuant": False}}
    found["PrefixTuning-projection"] = {"method": "PrefixTuning", "prefixTuning": {"projection": True}}
    found["PromptTuning-text"] = {"method": "PromptTuning", "promptTuning": {"initText": "Answer in a few words."}}
    found["LoRA-rsLoRA"] = {"method": "LoRA", "lora": {"useRslora": True}}
    for init in ("Gaussian", "PiSSA", "OLoRA", "EVA"):
        found[f"LoRA-{init}"] = {"method": "LoRA", "lora": {"init": init}}
    found["QLoRA-LoftQ"] = {"method": "QLoRA", "quantization": {"type": "NF4"}, "lora": {"init": "LoftQ"}}
    return found


def job(folder: Path, blocks: Json, steps: int) -> Json:
    """Return a LoRAJob beside the data in `folder`: whole rows in batches of two, everything in float32."""
    spec: Json = {
        "model": {"uri": model.ensure().as_uri(), "servedName": "SmolLM2-135M-Instruct"},
        "dataset": {"uri": "file://rows.jsonl", "evaluation": {"fraction": 0.02}},
        "training": {
            "maxSteps": steps,
            "batchSize": 2,
            "gradientAccumulation": 1,
            "maxLength": 128,
            "packing": False,
            "precision": "Float32",
            "gradientCheckpointing": False,
        },
        "checkpoint": {"everySteps": 10_000},
        "output": {"uri": f"file://{folder}/out"},
        "resources": {"gpus": 0},
    }
    if "quantization" in blocks:
        blocks = blocks | {"quantization": {"computeType": "Float32"} | blocks["quantization"]}
    metadata = {"name": "bench"}
    return {"apiVersion": "tunery.dev/v1alpha1", "kind": "LoRAJob", "metadata": metadata, "spec": spec | blocks}


def run_one(folder: Path, blocks: Json, steps: int) -> Json:
    """Run one case in this process and return its figures."""
    import torch

    from tunery_trainer.cli import main as trainer
    from tunery_trainer.training import run

    before, found = status_bytes("VmRSS"), {}
    rows: list[list[int]] = []
    trained: list[torch.Tensor] = []
    train_on = run.train_on

    def measured(job: Any, *place: Any) -> Any:
        fitted = train_on(job, *place)
        found["peak_mb"] = round((status_bytes("VmHWM") - before) / 1e6)
        runtime = next(entry["train_runtime"] for entry in fitted.history if "train_runtime" in entry)
        found["step_s"] = round(runtime / steps, 2)
        found["trainable"] = fitted.trainable_parameters
        rows.extend(job.data.evaluation[:4]["input_ids"])
        trained.extend(logits(fitted.model, rows))
        return fitted

    # Looked up when training begins: here the trained model is still at hand, which the command line never gives out.
    run.train_on = measured
    path = folder / "job.yaml"
    path.write_text(json.dumps(job(folder, blocks, steps)))
    with contextlib.redirect_stdout(sys.stderr):
        code = trainer(["run", str(path), "--work-dir", str(folder / "work")])
    if code:
        raise SystemExit(f"the trainer ended with {code}")
    metrics = json.loads((folder / "out/manifest.json").read_text())["lineage"]["metrics"]
    found |= {"base_loss": round(metrics["baseEvalLoss"], 4), "loss": round(metrics["evalLoss"], 4)}
    found["adapter_mb"] = round((folder / "out/adapter_model.safetensors").stat().st_size / 1e6, 2)
    plain = logits(plain_peft(folder / "out", blocks), rows)
    largest = max(float(one.abs().max()) for one in trained)
    found["difference"] = max(float((a - b).abs().max()) for a, b in zip(trained, plain, strict=True)) / largest
    return found


def logits(adapted: Any, rows: list[list[int]]) -> list[Any]:
    """Return the logits of each row (tokens × vocabulary)."""
    import torch

    adapted.eval()
    with torch.no_grad():
        return [adapted(input_ids=torch.tensor([row])).logits[0, -len(row) :].float() for row in rows]


def plain_peft(folder: Path, blocks: Json) -> Any:
    """Load the published folder as any user does."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    chosen, config = blocks.get("quantization"), None
    if chosen and chosen["type"] == "Int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
    elif chosen:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=chosen["type"].lower(),
            bnb_4bit_use_double_quant=chosen.get("doubleQuant", True),
            bnb_4bit_compute_dtype=torch.float32,
        )
    base = AutoModelForCausalLM.from_pretrained(
        model.ensure(), dtype=torch.float32, quantization_config=config, device_map={"": "cpu"}
    )
    for module in base.modules():
        # Else bitsandbytes goes over to bfloat16 on CPUs that have it, at the first forward without gradients.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return PeftModel.from_pretrained(base, folder)


def measure(name: str, blocks: Json, steps: int) -> Json:
    """Run one case in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        dataset.write_messages(Path(folder, "rows.jsonl"))
        command = [sys.executable, "-m", "bench.methods", "--case", name, "--folder", folder, "--steps", str(steps)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode:
        return {"error": " ".join(done.stderr.strip().splitlines()[-3:])}
    found: Json = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def verdict(found: Json) -> str:
    """Return what is wrong with a case, or nothing."""
    if "error" in found:
        return str(found["error"])
    wrong = []
    if found["loss"] >= found["base_loss"]:
        wrong.append("the loss did not go down")
    if found["difference"] > TOLERANCE:
        wrong.append("plain PEFT gives other logits")
    return "; ".join(wrong)


def main() -> int:
    """Run the cases that are asked for; return 1 if one of them is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(run_one(options.folder, cases()[options.case], options.steps)))
        return 0
    failed = 0
    print("| case | trainable | adapter, MB | s a step | peak, MB | loss before | after | logits differ by | |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, blocks in cases().items():
        if options.only and name not in options.only:
            continue
        found = measure(name, blocks, options.steps)
        wrong = verdict(found)
        failed += bool(wrong)
        names = ("trainable", "adapter_mb", "step_s", "peak_mb", "base_loss", "loss", "difference")
        cells = [f"{found[key]:.2g}" if key == "difference" else f"{found[key]:,}" for key in names if key in found]
        print(f"| {name} | {' | '.join(cells)} | {wrong} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
