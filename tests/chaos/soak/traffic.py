"""What people do to LoRAJobs: create, suspend, resume, delete and try again, at random but the same each time."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from chaos.soak.kubelets import BAD, ENDLESS, FATES, FLAKY, GOOD, UNFIT
from kit.operator.api import Api, Refused
from kit.operator.objects import lorajob

_WEIGHTS: Final = {GOOD: 60, FLAKY: 15, BAD: 8, UNFIT: 8, ENDLESS: 9}
_LEFT_ALONE_SECONDS: Final = 45
"""How long nobody touches a job, on the average; looks are a second apart."""
_TTL_SECONDS: Final = 90
"""Most jobs go away a while after their end, so that the last hour is as heavy as the first."""
_AGAIN: Final = 0.3
"""How often what was deleted is applied again at once."""
_GONE: Final = (404, 409)


class Traffic:
    """Users of one namespace."""

    def __init__(self, api: Api, namespace: str, jobs: int, seed: int) -> None:
        self._api = api
        self._path = f"/apis/tunery.dev/v1alpha1/namespaces/{namespace}/lorajobs"
        self._wanted = jobs
        self._draw = random.Random(seed)
        self.created = 0
        self.actions: dict[str, int] = {}

    def go_on(self, share: float, lorajobs: Sequence[dict[str, Any]]) -> None:
        """Create what is due after this share of the time, and do something to a few of those that there are."""
        due = min(self._wanted, round(self._wanted * share))
        while self.created < due:
            self._create()
        for item in lorajobs:
            if self._draw.random() < 1 / _LEFT_ALONE_SECONDS:
                self._touch(item)

    def settle(self, lorajobs: Sequence[dict[str, Any]]) -> None:
        """Resume what is suspended, and suspend what would never end: from now on nothing is asked of the operator."""
        for item in lorajobs:
            name: str = item["metadata"]["name"]
            endless = name.startswith(ENDLESS)
            if bool(item["spec"].get("suspend")) != endless:
                self._do("settle", partial(self._suspend, name, endless))

    def _create(self) -> None:
        fate = self._draw.choices(FATES, [_WEIGHTS[fate] for fate in FATES])[0]
        name = f"{fate}-{self.created:05}"
        spec: dict[str, Any] = {"retries": 2} if fate == FLAKY else {}
        if self._draw.random() < 0.9:
            spec["ttlSecondsAfterFinished"] = _TTL_SECONDS
        if self._draw.random() < 0.05:
            spec["suspend"] = True
        self.created += 1
        self._do("create", lambda: self._api.call("POST", self._path, lorajob(name, **spec)))

    def _touch(self, item: dict[str, Any]) -> None:
        name, phase = item["metadata"]["name"], item.get("status", {}).get("phase", "")
        if item["spec"].get("suspend"):
            self._do("resume", lambda: self._suspend(name, False))
        elif phase == "Failed":
            again = {"metadata": {"annotations": {"tunery.dev/retry": str(self._draw.random())}}}
            self._do("retry", lambda: self._api.patch(f"{self._path}/{name}", again))
        elif self._draw.random() < 0.4:
            self._do("delete", lambda: self._api.delete(f"{self._path}/{name}"))
            if self._draw.random() < _AGAIN:
                # While its pod still ends: nothing of it may be told of the new one.
                self._do("apply again", lambda: self._api.call("POST", self._path, _again(item)))
        else:
            self._do("suspend", lambda: self._suspend(name, True))

    def _suspend(self, name: str, suspend: bool) -> None:
        self._api.patch(f"{self._path}/{name}", {"spec": {"suspend": suspend}})

    def _do(self, action: str, call: Callable[[], object]) -> None:
        """Count it; what is gone by now cannot be acted on."""
        self.actions[action] = self.actions.get(action, 0) + 1
        try:
            call()
        except Refused as refused:
            if refused.status not in _GONE:
                raise


def _again(item: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest of a LoRAJob, for another one of its name."""
    return {name: item[name] for name in ("apiVersion", "kind", "spec")} | {
        "metadata": {"name": item["metadata"]["name"]}
    }
