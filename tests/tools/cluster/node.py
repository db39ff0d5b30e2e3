"""kubelet and kube-proxy: what makes this machine a node of the cluster."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tools.cluster import cgroups
from tools.cluster.containerd import POD_RANGE, Containerd
from tools.cluster.controlplane import SERVICE_RANGE, ControlPlane
from tools.cluster.daemon import Daemon
from tools.cluster.packages import SYSTEM_PATH
from tools.cluster.ports import is_listening, kept_ports
from tools.cluster.shell import CommandFailed, run, succeeds

NODE = "tunery"
DNS_ADDRESS = "10.96.0.10"
UNSERVED_CHAIN = "TUNERY-UNSERVED"
"""Our chain of rules for services that nobody serves."""
GPU = "nvidia.com/gpu"
WANTED_PORTS = {"kubelet": 10250, "kubelet-health": 10248, "proxy-health": 10256, "proxy-metrics": 10249}
READY_SECONDS = 120
MINIMAL_EVICTION = ("memory.available", "nodefs.available", "nodefs.inodesFree", "imagefs.available")


@dataclass(frozen=True)
class Node:
    """The one node of a cluster."""

    control_plane: ControlPlane

    @property
    def state_dir(self) -> Path:
        return self.control_plane.state_dir

    @property
    def kubelet(self) -> Daemon:
        return Daemon("kubelet", self.state_dir)

    @property
    def proxy(self) -> Daemon:
        return Daemon("kube-proxy", self.state_dir)

    @cached_property
    def ports(self) -> dict[str, int]:
        return kept_ports(self.state_dir / "node-ports.json", WANTED_PORTS)

    def start(self, runtime: Containerd) -> None:
        """Start what does not run and return when the node is Ready; containerd must run."""
        run(["mount", "--make-rshared", "/"])
        cgroups.create()
        self._start_kubelet(runtime)
        self._start_proxy()
        self.kubelet.wait_ready(self.is_ready, timeout=READY_SECONDS)

    def stop(self) -> None:
        for daemon in (self.proxy, self.kubelet):
            daemon.stop()

    def is_ready(self) -> bool:
        """Tell whether the API says that the node is Ready."""
        try:
            node = json.loads(self.kubectl("get", "node", NODE, "--ignore-not-found", "-o", "json") or "{}")
        except CommandFailed:
            return False
        conditions = node.get("status", {}).get("conditions", [])
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as the cluster's administrator and return its output."""
        plane = self.control_plane
        return run([plane.kubectl, "--kubeconfig", plane.kubeconfig, *arguments], stdin=stdin, timeout=120)

    def set_gpus(self, count: int | None) -> None:
        """Let the node offer GPUs, or none at all; pods that ask for one start and find no CUDA."""
        amounts = {GPU: None if count is None else str(count)}
        patch = json.dumps({"status": {"capacity": amounts, "allocatable": amounts}})
        self.kubectl("patch", "node", NODE, "--subresource=status", "--type=merge", "-p", patch)

    def _start_kubelet(self, runtime: Containerd) -> None:
        plane = self.control_plane
        file = self.state_dir / "kubelet.yaml"
        file.write_text(yaml.safe_dump(self._kubelet_config(runtime)))
        self.kubelet.start(
            [
                plane.bin / "kubelet",
                *("--config", file, "--root-dir", self.state_dir / "kubelet"),
                *("--kubeconfig", plane.client_kubeconfig("kubelet", f"system:node:{NODE}", "system:nodes")),
                *("--hostname-override", NODE, "--node-ip", plane.address),
            ],
            env={"PATH": SYSTEM_PATH},
        )
        self.kubelet.wait_ready(lambda: is_listening("127.0.0.1", self.ports["kubelet-health"]))

    def _kubelet_config(self, runtime: Containerd) -> dict[str, Any]:
        serving = self.control_plane.authority.issue("kubelet-serving", NODE, hosts=[NODE, self.control_plane.address])
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(self.control_plane.authority.pair.cert)},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{cgroups.NAME}",
            "clusterDNS": [DNS_ADDRESS],
            "clusterDomain": "cluster.local",
            "containerRuntimeEndpoint": f"unix://{runtime.socket}",
            "evictionHard": dict.fromkeys(MINIMAL_EVICTION, "1%"),
            "failCgroupV1": False,
            "failSwapOn": False,
            # Tolerates that limits of the kernel cannot be raised.
            "featureGates": {"KubeletInUserNamespace": True},
            "healthzPort": self.ports["kubelet-health"],
            "imageGCHighThresholdPercent": 100,
            "podLogsDir": str(self.state_dir / "pod-logs"),
            "port": self.ports["kubelet"],
            "registerNode": True,
            "shutdownGracePeriod": "0s",
            "tlsCertFile": str(serving.cert),
            "tlsPrivateKeyFile": str(serving.key),
            "volumePluginDir": str(self.state_dir / "kubelet" / "volume-plugins"),
        }

    def _start_proxy(self) -> None:
        plane = self.control_plane
        self.proxy.start(
            [
                plane.bin / "kube-proxy",
                *("--kubeconfig", plane.client_kubeconfig("kube-proxy", "system:kube-proxy")),
                *("--proxy-mode", "iptables", "--cluster-cidr", POD_RANGE, "--hostname-override", NODE),
                *("--conntrack-max-per-core", "0"),
                *("--healthz-bind-address", f"127.0.0.1:{self.ports['proxy-health']}"),
                *("--metrics-bind-address", f"127.0.0.1:{self.ports['proxy-metrics']}"),
            ],
            env={"PATH": SYSTEM_PATH},
        )
        self.proxy.wait_ready(lambda: is_listening("127.0.0.1", self.ports["proxy-health"]))
        _refuse_the_unserved()


def _refuse_the_unserved() -> None:
    """Refuse what goes to a service that has no rules yet.

    It would leave the machine: whatever answers there, such as a gateway, keeps that connection, and whoever holds it
    open, as the API server does, never comes to the service.
    """
    iptables = ["iptables", "--wait"]
    if not succeeds([*iptables, "--list-rules", UNSERVED_CHAIN]):
        run([*iptables, "--new-chain", UNSERVED_CHAIN])
        reject = ["--destination", SERVICE_RANGE, "--protocol", "tcp", "--jump", "REJECT", "--reject-with", "tcp-reset"]
        run([*iptables, "--append", UNSERVED_CHAIN, *reject])
    for chain in ("OUTPUT", "FORWARD"):
        if not succeeds([*iptables, "--check", chain, "--jump", UNSERVED_CHAIN]):
            run([*iptables, "--append", chain, "--jump", UNSERVED_CHAIN])
