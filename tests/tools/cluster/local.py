"""The whole local cluster: control plane, node, S3 server, registry, images, model and data set."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from tools.cluster import binaries, cleanup, disk, images, packages, scratchimage, seed
from tools.cluster.containerd import Containerd
from tools.cluster.controlplane import ControlPlane
from tools.cluster.daemon import Daemon
from tools.cluster.dns import Dns
from tools.cluster.machine import node_address
from tools.cluster.node import Node
from tools.cluster.paths import cache_dir
from tools.cluster.progress import Progress
from tools.cluster.registry import Registry
from tools.cluster.s3 import S3Server

GPUS = 2
S3_PORT = 8333


class NotRunning(Exception):
    """The cluster is asked about and does not run."""


@dataclass(frozen=True)
class LocalCluster:
    """One cluster with one node; its state lies in `state_dir`."""

    state_dir: Path

    @cached_property
    def address(self) -> str:
        return node_address()

    @cached_property
    def control_plane(self) -> ControlPlane:
        return ControlPlane(self.state_dir, self.address)

    @cached_property
    def s3(self) -> S3Server:
        return S3Server(self.state_dir, self.address, S3_PORT)

    @cached_property
    def registry(self) -> Registry:
        return Registry(self.state_dir, self.address, cache_dir() / "registry")

    @property
    def _images_file(self) -> Path:
        """What the registry holds, which is not the present code while somebody edits it."""
        return self.state_dir / "images.json"

    @cached_property
    def containerd(self) -> Containerd:
        return Containerd(self.state_dir)

    @cached_property
    def node(self) -> Node:
        return Node(self.control_plane)

    @cached_property
    def dns(self) -> Dns:
        return Dns(self.node)

    def daemons(self) -> list[Daemon]:
        """Return every program of the cluster, in the order in which they may be ended."""
        plane = ("kube-scheduler", "kube-controller-manager", "kube-apiserver", "etcd")
        rest = [Daemon(name, self.state_dir) for name in plane]
        return [
            *(self.node.kubelet, self.node.proxy, self.dns.daemon, self.containerd.daemon),
            *(*rest, self.s3.daemon, self.registry.daemon),
        ]

    def is_running(self) -> bool:
        return all(daemon.is_running() for daemon in self.daemons())

    def up(self, progress: Progress) -> None:
        """Start the cluster, or bring what the code has changed into a running one."""
        with self._lock():
            if self.is_running():
                self._bring_images(progress)
                return
            missing = packages.missing()
            # A cluster that lost a part is not repaired: a new one takes seconds.
            with progress.step("Removing what an earlier cluster left"):
                cleanup.clean(self.state_dir)
                self.state_dir.mkdir(parents=True)
            self._start(progress, missing)

    def down(self, progress: Progress) -> None:
        """End the cluster and remove everything but the caches."""
        with self._lock(), progress.step("Removing the cluster"):
            self._delete_pods()
            cleanup.clean(self.state_dir)

    def bring_engine(self, progress: Progress, name: str) -> str:
        """Bring an engine's image to the node, built where the registry lacks it, and return its reference."""
        if not self.is_running():
            raise NotRunning("the local cluster does not run: make cluster-up")
        image = images.ENGINES[name]
        with self._lock():
            with progress.step(f"Build image {image.repository} (vLLM's takes minutes the first time)"):
                reference = images.push_one(image, self.registry, keep=name != "vllm")
            with progress.step("Load the image onto the node (vLLM's takes a minute)"):
                self.containerd.pull(reference)
            disk.engine_mark(self.state_dir, name).touch()
        return reference

    def environment(self) -> dict[str, str]:
        """Return the variables for kubectl, helm, AWS tools, the demo and the tests."""
        if not self.is_running():
            raise NotRunning("the local cluster does not run: make cluster-up")
        if not self._images_file.exists():
            raise NotRunning("the local cluster still starts: its images are not there yet; try again once they are")
        pushed = json.loads(self._images_file.read_text())
        return {
            "KUBECONFIG": str(self.control_plane.kubeconfig),
            "PATH": f"{binaries.kubernetes()}:$PATH",
            **self.s3.environment(),
            "TUNERY_OPERATOR_IMAGE": pushed["operator"],
            "TUNERY_TRAINER_IMAGE": pushed["trainer"],
            "TUNERY_SERVER_IMAGE": pushed["server"],
        }

    def _start(self, progress: Progress, missing: list[str]) -> None:
        """Start everything side by side; each part waits for what it needs."""
        with ThreadPoolExecutor(max_workers=8) as pool:
            registry = pool.submit(self._start_registry, progress, missing)
            runtime = pool.submit(_after, [registry], lambda: self._start_runtime(progress))
            work = [
                pool.submit(self._start_kubernetes, progress, runtime),
                pool.submit(self._seed, progress),
                pool.submit(_after, [registry], lambda: self._bring_images(progress, [runtime])),
            ]
            for done in as_completed([registry, runtime, *work]):
                done.result()

    def _start_registry(self, progress: Progress, missing: list[str]) -> None:
        if missing:
            with progress.step("Debian packages"):
                packages.install(missing)
        with progress.step("Registry"):
            self.registry.start()

    def _start_runtime(self, progress: Progress) -> None:
        with progress.step("Container runtime"):
            pause = scratchimage.ensure(scratchimage.PAUSE, self.registry)
            self.containerd.start(pause, self.registry.host)

    def _start_kubernetes(self, progress: Progress, runtime: Future[None]) -> None:
        with progress.step("Build Kubernetes and Helm (minutes the first time)"):
            binaries.kubernetes()
        with progress.step("Start the control plane"):
            self.control_plane.start()
        runtime.result()
        with progress.step("Node"):
            self.dns.start()
            self.node.start(self.containerd)
            self.node.set_gpus(GPUS)

    def _seed(self, progress: Progress) -> None:
        with progress.step("S3 server"):
            self.s3.start()
        with progress.step("Model and data set"):
            seed.upload(self.s3.client())

    def _bring_images(self, progress: Progress, runtime: Iterable[Future[None]] = ()) -> None:
        """Build and push each image; the node pulls it while the next one is built."""
        pushed, pulls = {}, []
        with ThreadPoolExecutor(max_workers=1) as node:
            for image in images.IMAGES:
                with progress.step(f"Build image {image.repository}"):
                    pushed[image.name] = images.push_one(image, self.registry)
                pull = partial(self._pull, progress, pushed[image.name])
                pulls.append(node.submit(_after, runtime, pull))
            for done in pulls:
                done.result()
        self._images_file.write_text(json.dumps(pushed))

    def _pull(self, progress: Progress, reference: str) -> None:
        with progress.step(f"Load image {reference.rpartition('/')[2].partition(':')[0]} onto the node"):
            self.containerd.pull(reference)

    def _delete_pods(self) -> None:
        """End the pods in order while there is a kubelet: their mounts go with them."""
        if self.is_running():
            self.node.kubectl("delete", "pods", "--all", "--all-namespaces", "--grace-period=0", "--force")

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Let one process at a time start or end this cluster."""
        self.state_dir.parent.mkdir(parents=True, exist_ok=True)
        with (self.state_dir.parent / f".{self.state_dir.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _after(first: Iterable[Future[None]], then: Callable[[], None]) -> None:
    for done in first:
        done.result()
    then()
