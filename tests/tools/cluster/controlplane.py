"""etcd, API server, controller manager and scheduler: enough for tests that need no node."""

from __future__ import annotations

import contextlib
import shutil
import ssl
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

from tools.cluster import binaries
from tools.cluster.certs import Authority, Pair
from tools.cluster.daemon import Daemon, end_on_sigterm
from tools.cluster.kubeconfig import write_kubeconfig
from tools.cluster.ports import kept_ports

SERVICE_RANGE = "10.96.0.0/16"
API_SERVICE_ADDRESS = "10.96.0.1"
WANTED_PORTS = {"apiserver": 0, "etcd": 0, "etcd-peer": 0, "controller-manager": 0, "scheduler": 0}
# In the order in which they start; they are stopped in the other.
NAMES = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


@dataclass(frozen=True)
class ControlPlane:
    """A Kubernetes API whose whole state lies in `state_dir`.

    `address` is what clients connect to: this machine alone by default, the node's address where pods need it.
    """

    state_dir: Path
    address: str = "127.0.0.1"
    ends_with_parent: bool = False

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.state_dir / "kubeconfig"

    @property
    def kubectl(self) -> Path:
        return self.bin / "kubectl"

    @property
    def server(self) -> str:
        return f"https://{self.address}:{self.ports['apiserver']}"

    @cached_property
    def bin(self) -> Path:
        return binaries.kubernetes()

    @cached_property
    def authority(self) -> Authority:
        authority = Authority(self.state_dir / "pki")
        authority.create()
        return authority

    @cached_property
    def ports(self) -> dict[str, int]:
        return kept_ports(self.state_dir / "controlplane-ports.json", WANTED_PORTS)

    def is_running(self) -> bool:
        return all(self._daemon(name).is_running() for name in NAMES)

    def start(self) -> None:
        """Start what does not run, and return when the API is ready and the controllers are at work."""
        if self.is_running():
            return
        (self.state_dir / "pki").mkdir(parents=True, exist_ok=True)
        admin = self.authority.issue("admin", "tunery-admin", "system:masters")
        self._start_etcd()
        self._start_apiserver()
        write_kubeconfig(self.kubeconfig, self.server, self.authority, admin)
        self._start_controllers()

    def stop(self) -> None:
        """Stop everything; the state stays."""
        for name in reversed(NAMES):
            self._daemon(name).stop()

    def remove(self) -> None:
        """Stop everything and remove the state."""
        self.stop()
        shutil.rmtree(self.state_dir, ignore_errors=True)

    @contextlib.contextmanager
    def temporary(self) -> Iterator[Self]:
        """Start it for a block, then remove it; however this process ends, no program of it stays."""
        plane = replace(self, ends_with_parent=True)
        end_on_sigterm()
        try:
            plane.start()
            yield plane
        finally:
            plane.remove()

    def client_kubeconfig(self, name: str, user: str, group: str | None = None) -> Path:
        """Return a kubeconfig for a component or a test user, authenticated by certificate."""
        pair = self.authority.issue(name, user, group)
        return write_kubeconfig(self.state_dir / "kubeconfigs" / name, self.server, self.authority, pair)

    def _daemon(self, name: str) -> Daemon:
        return Daemon(name, self.state_dir, self.ends_with_parent)

    def _start_etcd(self) -> None:
        url, peer = (f"https://127.0.0.1:{self.ports[name]}" for name in ("etcd", "etcd-peer"))
        pair, ca = self.authority.issue("etcd", "etcd", hosts=["127.0.0.1"]), self.authority.pair.cert
        daemon = self._daemon("etcd")
        daemon.start(
            [
                self.bin / "etcd",
                *("--name", "tunery", "--data-dir", self.state_dir / "etcd", "--unsafe-no-fsync"),
                *("--listen-client-urls", url, "--advertise-client-urls", url),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"tunery={peer}", "--client-cert-auth", "--peer-client-cert-auth"),
                *("--cert-file", pair.cert, "--key-file", pair.key, "--trusted-ca-file", ca),
                *("--peer-cert-file", pair.cert, "--peer-key-file", pair.key, "--peer-trusted-ca-file", ca),
                *("--log-level", "warn"),
            ]
        )
        daemon.wait_ready(lambda: self._answers(f"{url}/health", pair))

    def _start_apiserver(self) -> None:
        hosts = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
        hosts += ["localhost", "127.0.0.1", API_SERVICE_ADDRESS, self.address]
        serving = self.authority.issue("kube-apiserver", "kube-apiserver", hosts=hosts)
        client = self.authority.issue("apiserver-client", "tunery-apiserver", "system:masters")
        ca, key = self.authority.pair.cert, self.authority.signing_key("service-account")
        daemon = self._daemon("kube-apiserver")
        daemon.start(
            [
                self.bin / "kube-apiserver",
                *("--etcd-servers", f"https://127.0.0.1:{self.ports['etcd']}", "--etcd-cafile", ca),
                *("--etcd-certfile", client.cert, "--etcd-keyfile", client.key),
                *("--tls-cert-file", serving.cert, "--tls-private-key-file", serving.key, "--client-ca-file", ca),
                *("--kubelet-client-certificate", client.cert, "--kubelet-client-key", client.key),
                *("--kubelet-certificate-authority", ca, "--kubelet-preferred-address-types", "InternalIP"),
                *("--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction"),
                *self._aggregation_flags(),
                # Policies with which tests change pods as a platform's own would.
                *("--feature-gates", "MutatingAdmissionPolicy=true"),
                *("--runtime-config", "admissionregistration.k8s.io/v1beta1=true"),
                *("--service-account-key-file", key, "--service-account-signing-key-file", key),
                *("--service-account-issuer", "https://kubernetes.default.svc"),
                *("--service-cluster-ip-range", SERVICE_RANGE, "--secure-port", str(self.ports["apiserver"])),
                *self._listen_flags(),
            ]
        )
        daemon.wait_ready(lambda: self._answers(f"{self.server}/readyz", client))

    def _aggregation_flags(self) -> list[str | Path]:
        """Return the flags by which API servers behind this one, such as Kueue's, know who asks."""
        authority = Authority(self.state_dir / "front-proxy-pki")
        authority.create()
        client = authority.issue("front-proxy-client", "front-proxy-client")
        return [
            *("--requestheader-client-ca-file", authority.pair.cert),
            *(
                "--requestheader-allowed-names",
                "front-proxy-client",
                "--requestheader-username-headers",
                "X-Remote-User",
            ),
            *("--requestheader-group-headers", "X-Remote-Group"),
            *("--requestheader-extra-headers-prefix", "X-Remote-Extra-"),
            *("--proxy-client-cert-file", client.cert, "--proxy-client-key-file", client.key),
        ]

    def _listen_flags(self) -> list[str]:
        if self.address == "127.0.0.1":
            return [
                "--bind-address",
                "127.0.0.1",
                "--advertise-address",
                "127.0.0.1",
                "--endpoint-reconciler-type=none",
            ]
        return ["--bind-address", "0.0.0.0", "--advertise-address", self.address]

    def _start_controllers(self) -> None:
        ca, key = self.authority.pair, self.authority.signing_key("service-account")
        manager, scheduler = (self._daemon(name) for name in NAMES[2:])
        # Tests bind pods to nodes that do not exist, and it would delete them.
        controllers = "*,-pod-garbage-collector-controller" if self.ends_with_parent else "*"
        manager.start(
            [
                self.bin / manager.name,
                *("--kubeconfig", self.client_kubeconfig(manager.name, "system:kube-controller-manager")),
                *("--use-service-account-credentials", "--service-account-private-key-file", key),
                *("--controllers", controllers),
                *("--root-ca-file", ca.cert, "--cluster-signing-cert-file", ca.cert),
                *("--cluster-signing-key-file", ca.key, "--bind-address", "127.0.0.1", "--leader-elect=false"),
                *("--secure-port", str(self.ports["controller-manager"])),
                # The default limits cap a burst of Jobs at 8 pods a second.
                *("--kube-api-qps", "300", "--kube-api-burst", "500"),
            ]
        )
        scheduler.start(
            [
                self.bin / scheduler.name,
                *("--kubeconfig", self.client_kubeconfig(scheduler.name, "system:kube-scheduler")),
                *("--bind-address", "127.0.0.1", "--leader-elect=false"),
                *("--secure-port", str(self.ports["scheduler"])),
            ]
        )
        for daemon, port in ((manager, "controller-manager"), (scheduler, "scheduler")):
            # Both sign their own serving certificate, and /healthz is open to all.
            daemon.wait_ready(lambda port=port: _healthy(self.ports[port]))  # type: ignore[misc]
        # Pods are refused in a namespace until its default ServiceAccount exists.
        account = f"{self.server}/api/v1/namespaces/default/serviceaccounts/default"
        admin = self.authority.issue("admin", "tunery-admin", "system:masters")
        manager.wait_ready(lambda: self._answers(account, admin))

    def _answers(self, url: str, client: Pair) -> bool:
        context = ssl.create_default_context(cafile=str(self.authority.pair.cert))
        context.load_cert_chain(client.cert, client.key)
        with contextlib.suppress(OSError), _opener(context).open(url, timeout=5) as answer:
            return bool(answer.status == 200)
        return False


def _healthy(port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with contextlib.suppress(OSError), _opener(context).open(f"https://127.0.0.1:{port}/healthz", timeout=5) as answer:
        return bool(answer.status == 200)
    return False


def _opener(context: ssl.SSLContext) -> urllib.request.OpenerDirector:
    # A proxy of the machine is not for its own addresses.
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
