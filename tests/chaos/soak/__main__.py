"""Leave an operator alone for half an hour, and see whether its statuses are true.

    python -m chaos.soak [--minutes 30] [--jobs 2000] [--seed 1]

A control plane of its own; KWOK plays the nodes. Users create, suspend, resume, delete and retry LoRAJobs; for two
thirds of the time the operator is killed at random, and a proxy spoils some of its calls and watches; then it is left
alone, first with work, at last without.
Once a second each status is compared with Jobs and pods. Prints one JSON object; exits with 1 if something was wrong
for longer than five seconds, memory grew, the operator ended by itself, logged an error, or wrote while idle.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from chaos.soak.keeper import Keeper
from chaos.soak.kubelets import Kubelets
from chaos.soak.recorder import LIMIT_SECONDS, Recorder
from chaos.soak.traffic import Traffic
from chaos.soak.trouble import Trouble
from chaos.soak.truth import OVER
from kit.installation import ROOT
from kit.kubectl import Kubectl
from kit.operator.api import Api
from kit.operator.faults_proxy import FaultProxy
from kit.operator.process import OperatorProcess
from tools.cluster.controlplane import ControlPlane

NAMESPACE: Final = "soak"
KILLS_UNTIL: Final = 0.6
TRAFFIC_UNTIL: Final = 0.9
"""Shares of the time."""
SETTLE_SECONDS: Final = 300.0
IDLE_SECONDS: Final = 30.0
MAX_GROWTH: Final = 60.0
"""MiB an hour."""
MAX_MIB: Final = 512.0
"""The chart's limit."""


def main() -> int:
    """Run, print the result, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m chaos.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="tunery-soak-") as folder,
        ControlPlane(Path(folder) / "control-plane").temporary() as plane,
    ):
        result = Soak(plane, Path(folder), options).run()
    print(json.dumps(result, indent=1))
    return 1 if result["violations"] else 0


class Soak:
    """One run: everything that takes part, and the clock."""

    def __init__(self, plane: ControlPlane, folder: Path, options: argparse.Namespace) -> None:
        environment = os.environ | {
            "KUBECONFIG": str(plane.kubeconfig),
            "PATH": f"{plane.kubectl.parent}:{os.environ['PATH']}",
        }
        kubectl = Kubectl(environment)
        kubectl.run("apply", "--server-side", "-f", str(ROOT / "crds"))
        kubectl.run("wait", "--for=condition=Established", "crd", "--all", "--timeout=60s")
        kubectl.run("create", "namespace", NAMESPACE)
        api = Api(plane.kubeconfig)
        self._seconds = options.minutes * 60
        self._kubelets = Kubelets(api, plane.kubeconfig, folder)
        self._proxy = FaultProxy(folder, plane.kubeconfig, plane.authority, keep=1000).start()
        self._trouble = Trouble(self._proxy, options.seed)
        self._keeper = Keeper(OperatorProcess(folder / "operator", self._proxy.kubeconfig), options.seed)
        self._traffic = Traffic(api, NAMESPACE, options.jobs, options.seed)
        self._recorder = Recorder(api, NAMESPACE)
        self._unsettled: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """Return what was seen; `violations` is empty where all was well."""
        self._kubelets.start()
        try:
            start = time.monotonic()
            self._keeper.start(start)
            self._be_busy(start)
            settled = self._settle()
            idle_writes = self._be_idle() if settled else None
        finally:
            self._trouble.end()
            self._kubelets.stop()
            self._keeper.operator.stop()
            self._proxy.stop()
        return self._result(settled, idle_writes)

    def _be_busy(self, start: float) -> None:
        lorajobs: list[dict[str, Any]] = []
        while (share := (time.monotonic() - start) / self._seconds) < TRAFFIC_UNTIL:
            self._traffic.go_on(share / TRAFFIC_UNTIL, lorajobs)
            spoilt = share < KILLS_UNTIL
            if spoilt:
                self._trouble.go_on()
            else:
                self._trouble.end()
            lorajobs = self._look(may_kill=spoilt)
            _progress(f"{share:4.0%}  {self._traffic.created} created  {self._recorder.phases}")

    def _settle(self) -> bool:
        """Let everything come to its end; False where it does not."""
        self._traffic.go_on(1.0, ())
        self._traffic.settle(self._look(may_kill=False))
        end = time.monotonic() + SETTLE_SECONDS
        while time.monotonic() < end:
            lorajobs = self._look(may_kill=False)
            _progress(f"settling  {self._recorder.phases}")
            self._unsettled = [item for item in lorajobs if not _is_settled(item)]
            if not self._unsettled:
                return True
        return False

    def _be_idle(self) -> float:
        """Return how much was written while there was no reason to."""
        for _ in range(10):
            self._look(may_kill=False)  # the last events of the settling
        before, end = self._keeper.writes(), time.monotonic() + IDLE_SECONDS
        while time.monotonic() < end:
            self._look(may_kill=False)
        return self._keeper.writes() - before

    def _look(self, *, may_kill: bool) -> list[dict[str, Any]]:
        """Look at everything, once a second at most."""
        begin = time.monotonic()
        self._keeper.look(begin, may_kill=may_kill)
        lorajobs = self._recorder.look(begin, self._keeper.excused_until(begin))
        time.sleep(max(0.0, begin + 1 - time.monotonic()))
        return lorajobs

    def _result(self, settled: bool, idle_writes: float | None) -> dict[str, Any]:
        keeper, recorder = self._keeper, self._recorder
        growth, bad = keeper.growth_mib_an_hour(), keeper.bad_lines()
        checks = (
            (bool(recorder.violations), f"{len(recorder.told)} statuses were wrong for over {LIMIT_SECONDS:.0f} s"),
            (not settled, f"not everything came to its end within {SETTLE_SECONDS:.0f} s"),
            (bool(idle_writes), f"{idle_writes} writes while nothing changed"),
            (keeper.unexpected_ends > 0, f"the operator ended by itself {keeper.unexpected_ends} times"),
            (bool(bad), f"{len(bad)} lines of level ERROR or tracebacks"),
            (growth is not None and growth > MAX_GROWTH, f"memory grows by {growth} MiB an hour"),
            (keeper.peak_mib > MAX_MIB, f"memory reached {keeper.peak_mib:.0f} MiB"),
        )
        return {
            "violations": [text for wrong, text in checks if wrong],
            "wrongStatuses": recorder.violations,
            "unsettled": [
                {"name": item["metadata"]["name"], "spec": item["spec"], "status": item.get("status")}
                for item in self._unsettled[:10]
            ],
            "logLines": bad[:20],
            "minutes": self._seconds / 60,
            "jobs": self._traffic.created,
            "actions": self._traffic.actions,
            "kills": keeper.kills,
            "faults": self._trouble.struck(),
            "looks": recorder.looks,
            "longestDisagreementSeconds": round(recorder.longest, 1),
            "peakMiB": round(keeper.peak_mib),
            "growthMiBAnHour": None if growth is None else round(growth, 1),
            "idleWrites": idle_writes,
        }


def _is_settled(lorajob: dict[str, Any]) -> bool:
    """Tell whether nothing will happen to it any more."""
    phase, spec = lorajob.get("status", {}).get("phase"), lorajob["spec"]
    return phase == "Suspended" or (phase in OVER and "ttlSecondsAfterFinished" not in spec)


def _progress(text: str) -> None:
    """Show where it is, to whoever waits."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
