"""PEFT, a process of its own beside the server: one command a line on its input, one answer a line on its output.

    python -m bench.serving_peft MODEL

The two ways to serve several adapters without a server: `one_by_one` makes an adapter the active one for each request,
`mixed` has one `generate` for rows of all of them. Both in float32, with the likeliest token each time.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from tools.cluster.daemon import ENDS_WITH_PARENT

RANK: Final = 16
LAYERS: Final = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STRENGTH: Final = 0.04
"""Deviation of B: answers differ from the base's, and are still sentences."""
Row = tuple[str, str]
"""An adapter's name and a prompt."""


class Models:
    """A base with adapters beside each other."""

    def __init__(self, folder: str) -> None:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        # No answer ends before its last token, as with `ignore_eos`.
        base.generation_config.eos_token_id = None
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LAYERS, task_type="CAUSAL_LM")
        self.config = config
        self.model: Any = get_peft_model(base, config, adapter_name="draft").eval()

    def make(self, folder: str, seed: int, name: str) -> None:
        """Write an adapter of random factors that was trained on `name`."""
        torch = self.torch
        torch.manual_seed(seed)
        with torch.no_grad():
            for key, values in self.model.named_parameters():
                if "lora_A.draft" in key:
                    values.normal_(0, values.shape[1] ** -0.5)
                elif "lora_B.draft" in key:
                    values.normal_(0, STRENGTH)
        self.model.peft_config["draft"].base_model_name_or_path = name
        self.model.save_pretrained(folder, selected_adapters=["draft"])
        for file in Path(folder, "draft").iterdir():
            file.rename(Path(folder, file.name))

    def add(self, name: str, folder: str) -> None:
        """Load the adapter of a folder under a name."""
        self.model.load_adapter(folder, adapter_name=name)
        self.model.eval()

    def one_by_one(self, rows: list[Row], tokens: int) -> list[list[int]]:
        """Return the tokens that are added to each prompt."""
        answers = []
        for name, prompt in rows:
            self.model.set_adapter(name)
            answers += self._generate([prompt], tokens)
        return answers

    def mixed(self, rows: list[Row], tokens: int) -> list[list[int]]:
        """Return the same, from one batch."""
        return self._generate([prompt for _, prompt in rows], tokens, adapter_names=[name for name, _ in rows])

    def behind(self, rows: list[Row], answers: list[list[int]]) -> list[float]:
        """Return how far the logits of given answers are at most behind those of the likeliest tokens, by row."""
        furthest = []
        for (name, prompt), answer in zip(rows, answers, strict=True):
            self.model.set_adapter(name)
            given = self.tokenizer(prompt).input_ids
            with self.torch.inference_mode():
                logits = self.model(input_ids=self.torch.tensor([given + answer])).logits[0, len(given) - 1 : -1]
            chosen = logits.gather(-1, self.torch.tensor(answer)[:, None])[:, 0]
            furthest.append(float((logits.max(-1).values - chosen).max()))
        return furthest

    def _generate(self, prompts: list[str], tokens: int, **more: Any) -> list[list[int]]:
        given = self.tokenizer(prompts, return_tensors="pt", padding=True)
        with self.torch.inference_mode():
            made = self.model.generate(
                **given, max_new_tokens=tokens, do_sample=False, pad_token_id=self.tokenizer.pad_token_id, **more
            )
        found: list[list[int]] = made[:, given.input_ids.shape[1] :].tolist()
        return found


class Peft:
    """The process, seen from outside."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def ask(self, command: str, *arguments: Any) -> dict[str, Any]:
        """Return what came of a command, with the seconds and the seconds of CPU that it took."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps([command, *arguments]).encode() + b"\n")
        line = await self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of PEFT ended at {command}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def running(model: Path) -> AsyncIterator[Peft]:
    """Start the process, and end it."""
    process = await asyncio.create_subprocess_exec(
        *(*ENDS_WITH_PARENT, sys.executable, "-m", "bench.serving_peft", str(model)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 26,
        # Threads that spin while they wait take the cores from those who work (docs/benchmarks.md, Threads).
        env=os.environ | {"OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )
    try:
        yield Peft(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def main(folder: str) -> None:
    """Answer commands until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    models = Models(folder)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        began, used = time.perf_counter(), time.process_time()
        result = getattr(models, command)(*arguments)
        took = {"seconds": time.perf_counter() - began, "cpu": time.process_time() - used}
        print(json.dumps({"result": result, **took}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
