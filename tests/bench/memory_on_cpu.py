"""What training on a CPU takes, beside the estimate: real runs of the demo's model, each in a process of its own.

    python -m bench.memory_on_cpu [--cases QLoRA-BFloat16-2x256 LoRA-Float32-4x256-again ...] | grep case

Prints one JSON line for each case: bytes of the process at the peak of each part of the run (`resident` with mapped
files, `own` without), and the parts of the estimate. `again` recomputes activations; `varied` trains longer, on rows of
many lengths. Set OMP_NUM_THREADS=1: each case is a copy of this process, and threads do not survive that. Of libraries'
files a copy shows few pages as its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

Json = dict[str, Any]

METHODS: Final = ("LoRA", "QLoRA")
PRECISIONS: Final = ("Float32", "BFloat16")
SHAPES: Final = ("1x256", "4x256", "2x512", "4x512", "1x1024", "2x256-again", "4x512-again", "1x128-varied")
ALL: Final = tuple(f"{method}-{kind}-{shape}" for shape in SHAPES for method in METHODS for kind in PRECISIONS)
STEPS: Final = 2
VARIED_STEPS: Final = 60
_EVERY_SECONDS: Final = 0.005


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", nargs="*", default=ALL)
    options = parser.parse_args()
    from tunery_trainer.process.environment import prepare_environment

    with tempfile.TemporaryDirectory() as folder:
        prepare_environment(Path(folder), 0)
        # Nothing here uses them: their pages are there before the copies are made.
        import bitsandbytes  # noqa: F401 (for its pages)
        from transformers import LlamaForCausalLM  # noqa: F401 (for its pages)

        import tunery_trainer.training.run  # noqa: F401 (for its pages)

        for case in options.cases:
            # A copy of this process, which has imported all: its pages count as its own.
            child = os.fork()
            if not child:
                _run(case)
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                print(json.dumps({"case": case, "failed": True}), flush=True)


def _run(case: str) -> None:
    """Train the case as a pod would, and print what it took."""
    from tools.cluster.model import ensure

    with tempfile.TemporaryDirectory() as folder:
        manifest = _manifest(case, ensure(), Path(folder))
        found = {"case": case} | _train(manifest, Path(folder))
        print(json.dumps(found), flush=True)


def _manifest(case: str, model: Path, folder: Path) -> Json:
    method, precision, shape, *options = case.split("-")
    rows, length = shape.split("x")
    steps = VARIED_STEPS if "varied" in options else STEPS
    draw = random.Random(0)
    words = ("parcel", "truck", "street", "door", "night", "river", "stone", "music", "window", "garden")
    least = 8 if "varied" in options else int(length) + 64
    texts = [
        " ".join(draw.choices(words, k=draw.randint(least, int(length) + 64))) for _ in range(5 * steps * int(rows))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    training = {
        "maxSteps": steps,
        "batchSize": int(rows),
        "gradientAccumulation": 1,
        "maxLength": int(length),
        "packing": False,
        "precision": precision,
        "gradientCheckpointing": "again" in options,
    }
    return {
        "apiVersion": "tunery.dev/v1alpha1",
        "kind": "LoRAJob",
        "metadata": {"name": "memory"},
        "spec": {
            "model": {"uri": model.as_uri()},
            "dataset": {"uri": (folder / "rows.jsonl").as_uri()},
            "method": method,
            "training": training,
            "output": {"uri": (folder / "out").as_uri()},
            "resources": {"gpus": 0},
        },
    }


def _train(manifest: Json, folder: Path) -> Json:
    from tunery_trainer.local import run_spec_of
    from tunery_trainer.process.signals import StopSignal
    from tunery_trainer.tasks.train import run_train

    watch, plans = _Watch(), []
    run = run_spec_of(manifest, folder, folder / "work")
    import tunery_trainer.training.run as training

    def remember(job: Any, *place: Any) -> Any:
        plans.append(job.plan)
        watch.part("gather")
        return trained_on(job, *place)

    def ended(result: Any) -> None:
        raise _Seen

    trained_on, trained_to_the_end = training.train_on, training.train_to_the_end
    with (
        watch.running(),
        patch.object(training, "train_on", remember),
        patch.object(training, "load_base", watch.around("load", training.load_base)),
        patch.object(training, "ground_of", watch.around("evaluate", training.ground_of)),
        patch.object(
            training, "train_to_the_end", lambda *args: ended(watch.around("train", trained_to_the_end)(*args))
        ),
        suppress(_Seen),
    ):
        run_train(run, StopSignal())
    (plan,) = plans
    estimate = plan.memory
    return {
        "peaks": watch.peaks,
        "began": watch.began,
        "threads": os.environ.get("OMP_NUM_THREADS"),
        "estimate": estimate.total,
        "parts": estimate.in_parts().to_json_dict(),
        "length": plan.row_length,
    }


class _Seen(BaseException):
    """Training has ended: what comes after it takes less. No Exception, which the program would take for a defect."""


class _Watch:
    """Looks at the process's memory all the time, and tells parts of the run apart."""

    def __init__(self) -> None:
        self.peaks: dict[str, dict[str, int]] = {}
        self.began: dict[str, dict[str, int]] = {}
        self._own = 0
        self._over = False

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._look, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over = True
            thread.join()

    def part(self, name: str) -> None:
        """End a part of the run, and begin the next."""
        self.peaks[name] = {"resident": _now()["VmHWM"], "own": max(self._own, _now()["RssAnon"])}
        Path("/proc/self/clear_refs").write_text("5")
        self._own = 0

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            self.part(f"before {name}")
            self.began[name] = _now()
            result = function(*args, **kwargs)
            self.part(name)
            return result

        return timed

    def _look(self) -> None:
        while not self._over:
            self._own = max(self._own, _now()["RssAnon"])
            time.sleep(_EVERY_SECONDS)


def _now() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines if line[0] in ("VmHWM:", "RssAnon:", "RssFile:")}


if __name__ == "__main__":
    main()
