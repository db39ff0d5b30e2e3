"""A sweep by the product's own decisions, whose trials take what a landscape says instead of training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from tunery_api.lorajob import PreflightPolicy
from tunery_api.lorasweep import LoRASweepSpec
from tunery_api.sweepstatus import EndReason, TrialStatus
from tunery_search.decision import Decision, DecisionContext, decide
from tunery_search.dimensions import Values
from tunery_search.history import FixedTrial, build_request
from tunery_search.optuna_sampler import compute_suggestions
from tunery_search.space import Space, read_values, space_of, trial_spec
from tunery_search.trial_rows import merge_trials
from tunery_search.trial_spec import preflight_policy, with_trial_settings
from tunery_search.trials import Trial

from kit.landscapes import TOO_HIGH, Landscape, Run
from kit.sweeps import START, STEPS, sweep

SECONDS: Final = 60
"""What a trial takes from one evaluation to the next."""
_STOPS_AT: Final = 2
"""Evaluations in a row that are worse than the base model, after which a trainer ends its run."""
_ENDED: Final = ("Succeeded", "Failed", "Stopped")


@dataclass
class Simulated:
    """The LoRAJobs of a sweep, and its rows."""

    spec: LoRASweepSpec
    run: Callable[[Values], Run]
    fixed: Mapping[int, FixedTrial]
    space: Space
    children: dict[int, dict[str, Any]] = field(default_factory=dict)
    rows: list[TrialStatus] = field(default_factory=list)
    seconds: int = 0
    recorded: EndReason | None = None
    preflight: bool = False
    """Whether trials are checked as the spec says; else none is."""

    def played(self) -> tuple[Trial, ...]:
        """Return the trials at the end, by number."""
        while True:
            trials, decision = self.reconcile()
            if decision.publish is not None or decision.fail is not None:
                return trials
            self.live()

    def reconcile(self, *, killed: bool = False) -> tuple[tuple[Trial, ...], Decision]:
        """Decide once and do it; an operator that is killed does not write its status."""
        trials = merge_trials(self.rows, self.children.values(), lambda spec: read_values(self.space, spec))
        now = START + timedelta(seconds=self.seconds)
        decision = decide(self.spec, trials, DecisionContext(now, START, self.recorded))
        for number, why in decision.stop.items():
            self.children[number]["spec"]["stop"] = why
        if decision.create:
            ask = build_request(self.spec, self.space.dimensions, trials, decision.create, self.fixed)
            for each in compute_suggestions(ask).suggestions:
                checked = self.preflight and preflight_policy(self.spec.preflight, trials, each.values)
                self._make(each.number, each.origin, each.values, checked or PreflightPolicy.SKIP)
        if not killed:
            self.rows, self.recorded = [each.row for each in trials], decision.end_reason
        return trials, decision

    def _make(self, number: int, origin: str, values: Values, policy: PreflightPolicy) -> None:
        assert number not in self.children
        labels = {"tunery.dev/trial": f"{number:03}"}
        metadata = {"name": f"s-{number:03}", "labels": labels, "annotations": {"tunery.dev/origin": origin}}
        spec = with_trial_settings(trial_spec(self.spec, values), policy, self.spec.pruner)
        self.children[number] = {"metadata": metadata, "spec": spec, "status": {}}

    def live(self) -> None:
        """Let all go on to their next evaluations."""
        self.seconds += SECONDS
        for child in self.children.values():
            if child["status"].get("phase") not in _ENDED:
                self._train(child)

    def _train(self, child: dict[str, Any]) -> None:
        status, run = child["status"], self.run(read_values(self.space, child["spec"]))
        if not status and child["spec"]["preflight"] == PreflightPolicy.REQUIRED:
            status.update(phase="Preflight")
            return
        done = status.setdefault("evaluations", [])
        if child["spec"].get("stop"):
            status.update(phase="Stopped", stopped={"afterStep": done[-1]["step"]})
            return
        done.append({"step": STEPS * (len(done) + 1) // run.evaluations, "loss": f"{run.losses[len(done)]:.6g}"})
        status.update(
            phase="Training",
            conditions=[{"type": "Preflight", "status": "True"}],
            progress={"totalSteps": STEPS, "step": done[-1]["step"]},
            gpuSeconds=SECONDS * len(done),
            runSeconds=SECONDS * len(done),
        )
        self._end(status, run)

    def _end(self, status: dict[str, Any], run: Run) -> None:
        """End a trial that is through, has failed, or ends itself as its trainer would."""
        done = status["evaluations"]
        worse = [float(each["loss"]) > TOO_HIGH * run.base for each in done]
        if run.failure is not None and len(done) == len(run.losses):
            status.update(phase="Failed", failure={"reason": run.failure, "message": "it failed"})
        elif len(done) == len(run.losses):
            adapter = {"uri": "s3://out", "manifestSha256": "0" * 64}
            metrics = {"evalLoss": done[-1]["loss"], "baseEvalLoss": f"{run.base:.6g}"}
            status.update(phase="Succeeded", metrics=metrics, adapter=adapter)
        elif self.spec.pruner.type != "None" and len(worse) >= _STOPS_AT and all(worse[-_STOPS_AT:]):
            findings = [{"type": "WorseThanBase", "severity": "Problem", "message": "it is worse than the base model"}]
            failure = {"reason": "NotImproved", "message": "it is worse than the base model"}
            status.update(phase="Failed", failure=failure, findings=findings)


def simulated(landscape: Landscape, *, guide: bool, **fields: Any) -> tuple[Trial, ...]:
    """Return the trials of a sweep of a landscape, the guide's configurations first or not; `fields` are its spec's."""
    spec = sweep(**{**landscape.fields, **fields})
    starts = enumerate(landscape.guide if guide else ())
    fixed = {number: FixedTrial(origin=start.origin, values=dict(start.values)) for number, start in starts}
    return Simulated(spec, landscape.run, fixed, space_of(spec)).played()


def ends(trials: Iterable[Trial]) -> list[float | None]:
    """Return the losses of the trials by number, None of those that did not come to their ends."""
    return [float(each.row.value or "nan") if each.row.state == "Complete" else None for each in trials]


def steps(trials: Iterable[Trial]) -> list[int]:
    """Return how many evaluations each trial came to."""
    return [(each.row.gpu_seconds or 0) // SECONDS for each in trials]
