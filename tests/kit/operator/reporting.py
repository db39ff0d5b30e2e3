"""The progress endpoint by itself, with its real server, in the process of a test: only the API server is imitated."""

from __future__ import annotations

import base64
import json
import shutil
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tunery_api.kinds import Kind
from tunery_operator.observed.metadata import Key
from tunery_operator.progress.auth import PodIdentity, TokenReviewer
from tunery_operator.progress.server import Endpoint, Limits, ProgressServer
from tunery_operator.progress.tls import Certificate
from tunery_operator.runtime.cache import Cache
from tunery_operator.runtime.object_state import ObjectState
from tunery_operator.runtime.priority_queue import Priority

from tools.cluster.certs import Authority


def pod(index: int = 0) -> PodIdentity:
    """Return the pod of one object."""
    return PodIdentity("ns", f"job-{index}-train-x", f"uid-{index}")


def token(of: PodIdentity, *, audience: str = "tunery-progress", seconds: float = 3600, signature: str = "good") -> str:
    """Return a token of a pod; the imitated API server takes those whose signature is `good`."""
    bound = {"namespace": of.namespace, "pod": {"name": of.name, "uid": of.uid}}
    payload = {"aud": [audience], "exp": int(time.time() + seconds), "kubernetes.io": bound}
    parts = [json.dumps({"alg": "none"}).encode(), json.dumps(payload).encode(), signature.encode()]
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


@dataclass
class Reviews:
    """The API server's TokenReviews, counted."""

    seconds: float = 0.0
    count: int = 0
    audiences: tuple[str, ...] = ("tunery-progress",)
    """Empty: of an authenticator that doesn't know audiences."""

    def request(self, _call: Any, _namespace: Any, body: Any) -> dict[str, Any]:
        self.count += 1
        time.sleep(self.seconds)
        _, payload, signature = (base64.urlsafe_b64decode(part + "==") for part in body["spec"]["token"].split("."))
        if signature != b"good":
            return {"status": {"authenticated": False}}
        bound = json.loads(payload)["kubernetes.io"]
        extra = {f"authentication.kubernetes.io/pod-{name}": [bound["pod"][name]] for name in ("name", "uid")}
        user = {"username": f"system:serviceaccount:{bound['namespace']}:default", "extra": extra}
        return {"status": {"authenticated": True, "audiences": [*self.audiences], "user": user}}


@dataclass
class Pods:
    """The cache, as far as the endpoint asks it: one running pod for each object."""

    known: set[PodIdentity]
    states: dict[Key, ObjectState] = field(default_factory=dict)
    unproven: set[PodIdentity] = field(default_factory=set)
    """Pods that say they are a server's, and nobody has asked yet whether that is true."""

    def owner_of_pod(self, namespace: str, name: str, uid: str) -> tuple[Key, str] | None:
        found = PodIdentity(namespace, name, uid) in self.known
        return (Key(Kind.LORAJOB, namespace, name.removesuffix("-train-x")), "owner") if found else None

    def is_unproven(self, namespace: str, name: str, uid: str) -> bool:
        return PodIdentity(namespace, name, uid) in self.unproven

    def state(self, key: Key, _uid: str) -> ObjectState:
        return self.states.setdefault(key, ObjectState())


@dataclass
class Queue:
    """The work queue, as far as the endpoint uses it."""

    priorities: list[Priority] = field(default_factory=list)

    def add(self, keys: Iterable[Key], priority: Priority) -> None:
        self.priorities += [priority for _ in keys]

    def add_after(self, _key: Key, _seconds: float) -> None:
        self.priorities.append(Priority.LOW)


def certificates(folder: Path) -> Path:
    """Return a folder as the chart's Secret fills it."""
    authority = Authority(folder / "authority")
    authority.create()
    pair = authority.issue("progress", "progress", hosts=["127.0.0.1"])
    shutil.copy(pair.cert, folder / "tls.crt")
    shutil.copy(pair.key, folder / "tls.key")
    shutil.copy(authority.pair.cert, folder / "ca.crt")
    return folder


@dataclass
class Site:
    """A running endpoint."""

    tls: Path
    pods: Pods
    limits: Limits = field(default_factory=Limits)
    reviews: Reviews = field(default_factory=Reviews)
    queue: Queue = field(default_factory=Queue)
    leads: bool = True
    host: str = "127.0.0.1"
    """The host that pods connect to by their configuration."""
    port: int = 0
    cache: Cache | None = None
    """The real one, in place of `pods`."""

    async def __aenter__(self) -> Site:
        reviewer = TokenReviewer(self.reviews)  # type: ignore[arg-type]
        cache = self.pods if self.cache is None else self.cache
        self.endpoint = Endpoint(reviewer, cache, self.queue, lambda: self.leads)  # type: ignore[arg-type]
        self.server = ProgressServer(self.endpoint.handle, self.limits)
        self.certificate = Certificate(self.tls, self.host)
        self.port = await self.server.start(0, self.certificate, "127.0.0.1")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.server.stop()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/"

    @cached_property
    def trust(self) -> ssl.SSLContext:
        """What a client trusts; one for all, since connections are shared by their context."""
        return ssl.create_default_context(cafile=self.tls / "ca.crt")
