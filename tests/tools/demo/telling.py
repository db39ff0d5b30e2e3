"""What the demos say: each step with its time, what holds an object up, and how a demo ended."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from rich.console import Console

from kit.environment import MissingEnvironment, is_existing
from kit.kubectl import Kubectl, KubectlError
from tools.cluster.daemon import end_on_sigterm

NAMESPACE = "tunery-demo"
ERRORS = (MissingEnvironment, KubectlError, AssertionError, TimeoutError, subprocess.CalledProcessError)
INTERRUPTED = 130
"""The exit code of a program that SIGINT ended."""
_WAITS = frozenset({"InputMissing", "JobSuspended", "PreflightQueued", "Suspended"})
"""Reasons of conditions by which an object waits, beside those that begin with Waiting."""

console = Console(highlight=False, soft_wrap=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is done, and when it is done how long it took."""
    began = time.monotonic()
    console.print(f"[bold]▸ {what}[/]")
    yield
    console.print(f"  done in {time.monotonic() - began:.0f} s")


class Held(NamedTuple):
    """What stands in an object's way, as its status says it."""

    reason: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        return " ".join(f"waiting: {self.reason}: {self.message}\n{self.hint}".split())


def held(status: dict[str, Any]) -> Held | None:
    """Return what holds an object up; None where nothing does."""
    if failure := status.get("failure"):
        return Held(failure["reason"], failure.get("message", ""), failure.get("hint", ""))
    for each in status.get("conditions", []):
        if each["reason"].startswith("Waiting") or each["reason"] in _WAITS:
            return Held(each["reason"], each.get("message", ""))
    return None


class Hold:
    """What holds an object up: told once when it begins, and again only where it is another."""

    def __init__(self) -> None:
        self.now: Held | None = None

    def tell(self, status: dict[str, Any], kubectl: Kubectl | None = None, server: str = "") -> None:
        """Print what holds the object up, with what to do, unless that was printed.

        Given `kubectl`, the AdapterServers of the demo that keep their node busy are named, all but `server` itself.
        """
        before, self.now = self.now, held(status)
        if self.now == before:
            return
        if self.now is None:
            console.print("  no longer waiting")
            return
        console.print(f"  waiting: {self.now.reason}: {self.now.message}", markup=False)
        if self.now.hint:
            console.print(f"    {self.now.hint}", markup=False)
        if kubectl and self.now.reason == "Unschedulable":
            for each in kubectl.list("adapterservers", NAMESPACE):
                if (name := each["metadata"]["name"]) != server:
                    room = f"kubectl -n {NAMESPACE} delete adapterserver {name}"
                    console.print(f"    AdapterServer {name} keeps a part of the node: {room} makes room", markup=False)

    def with_story(self, story: str, end: str) -> str:
        """Return a story, and below it, where a screen ends, what holds the object up and how the demo ends."""
        return "\n".join((story, *((str(self.now),) if self.now else ()), end))


class Interrupted(Exception):
    """Ctrl-C or SIGTERM while these objects, such as lorajob/quickstart, ran in the cluster; they continue."""

    def __init__(self, *objects: str) -> None:
        super().__init__()
        self.objects = objects

    def __str__(self) -> str:
        what = [*self.objects, *(() if is_existing() else ("the local cluster",))]
        stops = [] if is_existing() else ["make cluster-down stops it all"]
        if self.objects:
            prefix = "" if is_existing() else 'eval "$(make -s cluster-env)"; '
            command = f"{prefix}kubectl delete -n {NAMESPACE} {' '.join(self.objects)}"
            stops.insert(0, f"to stop {'it' if len(self.objects) == 1 else 'them'}: {command}")
        go_on = f"{' and '.join(what)} {'go' if len(what) > 1 else 'goes'} on" if what else "no job of the demo runs"
        return "; ".join([f"Interrupted: {go_on}", *stops])


@contextmanager
def going_on(name: str) -> Iterator[None]:
    """Have an object named, as kind/name, that goes on in the cluster where Ctrl-C ends the demo meanwhile."""
    try:
        yield
    except Interrupted as inner:
        raise Interrupted(name, *inner.objects) from None
    except KeyboardInterrupt:
        raise Interrupted(name) from None


def ended(steps: Callable[[], None]) -> int:
    """Run a demo and return its exit code; what ended it early is told without a traceback."""
    end_on_sigterm()
    try:
        steps()
    except ERRORS as error:
        console.print(f"[red]{type(error).__name__}[/]: ", end="")
        console.print(str(error), markup=False)
        return 1
    except Interrupted as interrupted:
        console.print(f"\n{interrupted}", markup=False)
        return INTERRUPTED
    except KeyboardInterrupt:
        console.print(f"\n{Interrupted()}", markup=False)
        return INTERRUPTED
    return 0
