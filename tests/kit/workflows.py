"""One tenant's namespace in which workflows run to their end, and manifests for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from kit.operator import objects
from kit.operator.api import Json
from kit.operator.objects import UNSEEN, Namespace
from kit.process_kubelet import PodProcess, ProcessKubelet
from kit.watch import wait_for_object, watch

T = TypeVar("T")
SECONDS = 180.0
_FINAL = frozenset({"Succeeded", "Failed", "Stopped"})
SECRET: Json = {"name": "s3"}
MODEL = "s3://models/workflows"
ROWS = "s3://datasets/workflows/rows.jsonl"
BAD_ROWS = "s3://datasets/workflows/line-17.jsonl"
RESOURCES: Json = {"gpus": 0, "cpu": "1", "memory": "4Gi", "ephemeralStorage": "2Gi"}


@dataclass(frozen=True)
class Tenant(Namespace):
    """A namespace whose pods are processes."""

    kubelet: ProcessKubelet

    def lorajob(self, name: str, **blocks: Any) -> Json:
        """Return a LoRAJob of a few steps of the tiny model; keywords replace blocks of its spec."""
        return objects.lorajob(
            name,
            **{
                "model": {"uri": MODEL, "secretRef": SECRET},
                "dataset": {"uri": ROWS, "secretRef": SECRET, "evaluation": {"fraction": 0.2}},
                "method": "LoRA",
                "lora": {"rank": 4, "targetModules": ["q_proj", "v_proj"]},
                "training": training(12),
                "checkpoint": {"everySteps": 4},
                "output": self.output(name),
                "resources": RESOURCES,
                "preflight": "Skip",
            }
            | blocks,
        )

    def output(self, name: str) -> Json:
        """Return the output of an object of this namespace."""
        return {"uri": f"s3://adapters/{self.name}/{name}", "secretRef": SECRET}

    def processes(self, role: str) -> list[PodProcess]:
        """Return the pods there ever were with a role, oldest first."""
        return [
            each
            for each in self.kubelet.of_namespace(self.name)
            if each.pod["metadata"]["labels"]["tunery.dev/role"] == role
        ]

    def wait(self, what: str, plural: str, name: str, check: Callable[[Json], T | None]) -> T:
        """Return the first true answer of `check`, which is given each status of an object; fails after SECONDS."""

        def of_object(found: Json) -> T | None:
            status = found.get("status", {})
            return check({} if status == UNSEEN else status)

        answer = wait_for_object(self.api, self.path(plural, name), of_object, SECONDS)
        assert answer, f"{name}: not {what} within {SECONDS:.0f} s\n{self.describe(plural, name)}"
        return answer

    def wait_phase(self, name: str, phase: str, plural: str = "lorajobs", timeout: float = SECONDS) -> Json:
        """Return the status once it has this phase; fails where the object ends in another one."""

        def check(status: Json) -> Json | None:
            if status.get("phase") == phase:
                return status
            ended = status.get("phase") in _FINAL
            assert not ended, f"{name} is {status['phase']}, not {phase}\n{self.describe(plural, name)}"
            return None

        return self.wait(phase, plural, name, check)

    def wait_checkpoint(self, name: str, after: int = 0) -> int:
        """Return the step of the first checkpoint that the status shows `after` a step."""

        def check(status: Json) -> int | None:
            step: int = status.get("checkpoint", {}).get("step", 0)
            return step if step > after else None

        return self.wait("a checkpoint", "lorajobs", name, check)

    def wait_event(self, name: str, reason: str) -> None:
        """Return once there is an event of an object with a reason: events are posted after the status."""
        selector = f"fieldSelector=involvedObject.name%3D{name},reason%3D{reason}"
        for type_, _ in watch(self.api, f"/api/v1/namespaces/{self.name}/events", selector, SECONDS):
            if type_ == "ADDED":
                return
        raise AssertionError(f"no event {reason} of {name}\n{self.event_reasons(name)}")

    def log(self, name: str, role: str) -> str:
        """Return what the pods of an object with a role have printed."""
        return "".join(each.files.log.read_text() for each in self.processes(role) if each.owner == name)

    def describe(self, plural: str, name: str) -> str:
        """Return the status, the events and the end of each pod's log, for a failed test."""
        parts = [json.dumps(self.status(name, plural), indent=1), f"events: {self.event_reasons(name)}"]
        for each in self.kubelet.of_namespace(self.name):
            log = each.files.log.read_text(errors="replace") if each.files.log.exists() else ""
            parts.append(f"--- {each.pod['metadata']['name']}\n{log[-3000:]}")
        return "\n".join(parts)


def training(steps: int, **fields: Any) -> Json:
    """Return spec.training of a run of so many steps."""
    small = {"batchSize": 2, "gradientAccumulation": 1, "maxLength": 64}
    return {"maxSteps": steps, "learningRate": 1e-2, **small, **fields}


def assert_adapts(model: Path, adapter: Path) -> None:
    """Load an adapter with transformers and PEFT alone; fail where its logits are the base's, or not finite."""
    base = AutoModelForCausalLM.from_pretrained(model).eval()
    tokens = torch.arange(8, 24)[None]
    with torch.no_grad():
        before = base(tokens).logits
        after = PeftModel.from_pretrained(base, adapter).eval()(tokens).logits
    assert after.isfinite().all()
    assert not torch.equal(before, after)
