"""`make bench`: every benchmark, one after the other; each prints its own figures, as ratios within one run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

BENCHMARKS: Final = (
    "startup",
    "downloads",
    "data_prep",
    "large_data",
    "rendering",
    "memory_estimate",
    "training",
    "together",
    "evaluation_cost",
    "diagnosis_cost",
    "checkpoint_uploads",
    "default_runs",
    "merging",
    "merge_quality",
    "operator_latency",
    "progress",
    "replica_reports",
    "methods",
    "sweep",
    "sweep_memory",
    "sweep_operator",
    "serving",
    "serving_thousands",
)


def main(chosen: list[str]) -> int:
    """Run the benchmarks that are named, or all; return how many failed."""
    failed = 0
    for name in chosen or BENCHMARKS:
        print(f"== {name}", flush=True)
        tests = Path(__file__).resolve().parents[1]
        failed += subprocess.run([sys.executable, "-m", f"bench.{name}"], check=False, cwd=tests).returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
