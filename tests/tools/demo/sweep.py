"""`make demo-sweep`: LoRAJobs search for settings, the guide's three first, and the best adapter is published."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tunery_api.kubectl_yaml import documents_of
from tunery_api.methods import PRESETS

from kit.environment import is_existing, uri_root
from kit.held_out import held_out_lines, plain_peft_loss
from kit.installation import ROOT
from kit.jobs import Job
from kit.published import s3_client, split_uri
from tools.demo.__main__ import cluster, compare, fetched, installed
from tools.demo.answers import print_answers
from tools.demo.jobs import Table, begin, follow
from tools.demo.telling import NAMESPACE, console, ended, step

EXAMPLE = ROOT / "docs" / "examples" / "sweep.yaml"
TRIALS = 6
"""The guide's three, and as many that are proposed."""
SECONDS_PER_TRIAL = 600
ON_CPUS: dict[str, Any] = {"gpus": 0, "cpu": "1500m"}
QUIET_SECONDS = 20
"""After which what is under way is told again; a look takes some seconds where the node is busy."""
LIKE_PLAIN_PEFT = 0.01
"""The trainer measures in the precision that it trains in, plain PEFT in float32: alike to a part in a hundred."""
_UNDER_WAY = frozenset({"Waiting", "Running"})
_ORIGINS_OF_THE_GUIDE = frozenset(preset.value for preset in PRESETS)


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.demo.sweep", description=__doc__)
    parser.add_argument("--trials", type=int, default=TRIALS, help=f"how many LoRAJobs, {TRIALS} unless said")
    trials = parser.parse_args().trials
    return ended(lambda: _demo(trials))


def _demo(trials: int) -> None:
    began = time.monotonic()
    environment = cluster()
    sweep = Job(installed(environment), on_cpus(uri_root(environment), trials), NAMESPACE)
    with step(f"Apply {EXAMPLE.relative_to(ROOT)}, without a GPU and with {trials} trials"):
        console.print(yaml.safe_dump(sweep.manifest, sort_keys=False), style="cyan", markup=False)
        begin(sweep)
    told = Told(lambda name: (sweep.kubectl.get("lorajob", name, NAMESPACE) or {}).get("status", {}))
    with step(f"Search: kubectl get {sweep.kind} {sweep.name} -n {NAMESPACE} -w"):
        follow(sweep, SECONDS_PER_TRIAL * trials, Table(("phase", "trials", "running", "best", "trial"), row, told))
    best = sweep.status["best"]["parameters"]
    template = sweep.manifest["spec"]["template"]
    with fetched(environment, sweep.status["adapter"]["uri"], template["model"]["uri"]) as (adapter, model):
        answers = compare(adapter, model)
        measured = _measure(environment, template, adapter, model)
    console.print()
    print_answers(answers)
    _farewell(sweep, best, measured, time.monotonic() - began)
    check_found(sweep.status, measured)


def _measure(environment: dict[str, str], template: dict[str, Any], adapter: Path, model: Path) -> float:
    """Return the loss of the rows that all trials held out, by nothing but transformers and PEFT."""
    rows = adapter.with_name("rows.jsonl")
    s3_client(environment).download_file(*split_uri(template["dataset"]["uri"]), str(rows))
    lines = held_out_lines(rows, template)
    with step(f"Measure its loss on the {len(lines)} held-out rows with plain PEFT"):
        rows.write_text("".join(lines), "utf-8")
        return plain_peft_loss(model, adapter, rows, template["training"]["maxLength"])


def on_cpus(root: str, trials: int) -> dict[str, Any]:
    """Return the example as it runs on a node without a GPU."""
    manifest: dict[str, Any]
    (manifest,) = documents_of(EXAMPLE.read_text().replace("s3://", root))
    manifest["spec"]["maxTrials"] = trials
    manifest["spec"]["template"]["resources"] |= ON_CPUS
    return manifest


def row(status: dict[str, Any]) -> tuple[str, ...]:
    """Return what stands in a line of the table; a sweep that nobody has looked at yet is Pending."""
    best = status.get("best", {})
    running = (status.get("counts") or {}).get("running", "")
    cells = (status.get("countsText"), running, best.get("value"), best.get("name"))
    return (status.get("phase", "Pending"), *("" if cell is None else str(cell) for cell in cells))


class Told:
    """Prints each trial once it has ended, with its values, and else every now and then what is under way."""

    def __init__(self, status_of: Callable[[str], dict[str, Any]], clock: Callable[[], float] = time.monotonic) -> None:
        """Ask `status_of` for the status of a trial's LoRAJob, by its name."""
        self._status_of = status_of
        self._clock = clock
        self._last = clock()
        self._ended: set[int] = set()

    def __call__(self, status: dict[str, Any]) -> None:
        trials = status.get("trials", [])
        for trial in trials:
            if trial["state"] in _UNDER_WAY or trial["number"] in self._ended:
                continue
            self._ended.add(trial["number"])
            values = ", ".join(f"{path.rpartition('.')[2]} {value}" for path, value in trial["parameters"].items())
            how = " ".join(str(trial[field]) for field in ("state", "value", "why") if trial.get(field))
            self._print(f"{trial['name']} ({trial['origin']}): {how}: {values}")
        if self._clock() - self._last < QUIET_SECONDS:
            return
        for name in [trial["name"] for trial in trials if trial["state"] in _UNDER_WAY]:
            self._print(f"{name}: {_where(self._status_of(name))}")

    def _print(self, line: str) -> None:
        self._last = self._clock()
        console.print(f"    {line}", style="dim", markup=False)


def _where(status: dict[str, Any]) -> str:
    """Return how far a LoRAJob is, in words."""
    progress, phase = status.get("progress", {}), status.get("phase", "Pending")
    if "step" not in progress:
        return str(phase)
    return f"{phase}, step {progress['step']} of {progress.get('totalSteps', '?')}"


def guides_best(status: dict[str, Any]) -> str | None:
    """Return the lowest loss of the guide's own configurations; None where none of them was measured."""
    losses = [
        trial["value"]
        for trial in status["trials"]
        if trial["state"] == "Complete" and trial["origin"] in _ORIGINS_OF_THE_GUIDE
    ]
    return min(losses, key=float, default=None)


def check_found(status: dict[str, Any], measured: float) -> None:
    """Raise AssertionError where the best is worse than the guide's best, or is not what plain PEFT measures."""
    value, guide = float(status["best"]["value"]), guides_best(status)
    if abs(measured - value) > LIKE_PLAIN_PEFT * value:
        apart = f"{abs(measured - value) / value:.1%} apart, at most {LIKE_PLAIN_PEFT:.0%} is right"
        raise AssertionError(
            f"plain PEFT measures {measured:.4f} on the held-out rows, the status says {value}: {apart}"
        )
    if guide is not None and value > float(guide):
        raise AssertionError(f"the best trial's loss, {value}, is above that of the guide's best, {guide}")


def _farewell(sweep: Job, best: dict[str, str], measured: float, seconds: float) -> None:
    status = sweep.status
    counts, found = status["counts"], status["best"]
    console.print()
    done = f"{counts['complete']} measured at their end, {counts['pruned']} ended early"
    console.print(f"trials           {counts['created']}: {done}")
    console.print(f"the guide's best {guides_best(status) or 'not measured at its end'}")
    console.print(f"best             {found['value']} by {found['name']}; the base model {found['baseValue']}")
    console.print(f"measured again   plain PEFT: {measured:.4f}, status: {found['value']}")
    console.print(f"with             {', '.join(f'{path} {value}' for path, value in best.items())}", markup=False)
    console.print(f"adapter          {status['adapter']['uri']}, with sweep.json and the pictures")
    console.print(f"time             {seconds:.0f} s")
    console.print("\nTry next, and read docs/sweeps.md:")
    for line in (
        *(() if is_existing() else ('eval "$(make -s cluster-env)"',)),
        f"kubectl -n {NAMESPACE} describe {sweep.kind} {sweep.name}",
        f"kubectl -n {NAMESPACE} get lorajobs -l tunery.dev/sweep={sweep.name} -o wide    # its trials",
        f"kubectl -n {NAMESPACE} delete {sweep.kind} {sweep.name}    # and its trials; what lies in the bucket stays",
    ):
        console.print(f"  {line}", markup=False)


if __name__ == "__main__":
    sys.exit(main())
