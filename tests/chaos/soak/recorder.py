"""Looks at everything once a second, and keeps what was wrong for longer than it may be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from chaos.soak.truth import Children, children_by_owner, complaints
from kit.operator.api import Api

LIMIT_SECONDS: Final = 5.0
"""How long a status may lag behind."""
_KEPT: Final = 50


@dataclass
class Recorder:
    """What was seen of one namespace."""

    api: Api
    namespace: str
    since: dict[tuple[str, str], float] = field(default_factory=dict)
    """Since when each complaint about each object holds, without a break."""
    told: set[tuple[str, str]] = field(default_factory=set)
    violations: list[dict[str, Any]] = field(default_factory=list)
    looks: int = 0
    longest: float = 0.0
    phases: dict[str, int] = field(default_factory=dict)

    def look(self, now: float, excused_until: float) -> list[dict[str, Any]]:
        """Compare status, Jobs and pods; return the LoRAJobs.

        What holds counts from `excused_until` at the earliest: while no operator runs nobody can be wrong.
        """
        lorajobs = self.api.items(f"/apis/tunery.dev/v1alpha1/namespaces/{self.namespace}/lorajobs")
        jobs = self.api.items(f"/apis/batch/v1/namespaces/{self.namespace}/jobs")
        pods = self.api.items(f"/api/v1/namespaces/{self.namespace}/pods")
        children = children_by_owner(jobs, pods)
        self.phases = {}
        seen = set()
        for lorajob in lorajobs:
            uid, phase = lorajob["metadata"]["uid"], lorajob.get("status", {}).get("phase", "")
            self.phases[phase] = self.phases.get(phase, 0) + 1
            for text in complaints(lorajob, children.get(uid, Children())):
                seen.add((uid, text))
                self._note((uid, text), lorajob, now, excused_until)
        self.since = {key: start for key, start in self.since.items() if key in seen}
        self.looks += 1
        return lorajobs

    def _note(self, key: tuple[str, str], lorajob: dict[str, Any], now: float, excused_until: float) -> None:
        start = max(self.since.setdefault(key, now), excused_until)
        lasted = now - start
        self.longest = max(self.longest, lasted)
        if lasted <= LIMIT_SECONDS or key in self.told:
            return
        self.told.add(key)
        if len(self.violations) < _KEPT:
            self.violations.append(
                {"name": lorajob["metadata"]["name"], "text": key[1], "status": lorajob.get("status")}
            )
