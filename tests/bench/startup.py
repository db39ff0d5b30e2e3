"""How soon a manifest with an error is refused: from the start of the process to its end, beside an empty one.

python -m bench.startup [--repeats 15]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

MANIFEST: Final = """\
apiVersion: tunery.dev/v1alpha1
kind: LoRAJob
metadata: {name: wrong}
spec:
  model: {uri: "file://model"}
  dataset: {uri: "file://rows.jsonl"}
  method: LoRA
  lora: {rank: 0}
  output: {uri: "file://out"}
"""
EXPECTED: Final = "spec.lora.rank"
USER_ERROR: Final = 64


def seconds(command: list[str], code: int, said: str) -> float:
    """Return how long a command takes; raises SystemExit where it does not end as it should."""
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    if done.returncode != code or said not in done.stderr:
        raise SystemExit(f"{' '.join(command)}: {done.returncode} {done.stderr}")
    return took


def main() -> None:
    """Print the medians as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "job.yaml")
        path.write_text(MANIFEST)
        refused = [sys.executable, "-m", "tunery_trainer", "run", str(path)]
        runs = [
            (seconds([sys.executable, "-c", ""], 0, ""), seconds(refused, USER_ERROR, EXPECTED))
            for _ in range(options.repeats)
        ]
    empty, ours = (statistics.median(column) for column in zip(*runs, strict=True))
    slowest = max(run[1] for run in runs)
    found = {"empty_s": empty, "refused_s": ours, "slowest_s": slowest, "ratio": ours / empty}
    print(json.dumps({name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
