"""Names of Services inside pods: coredns on the node, behind the Service kube-dns."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tools.cluster.controlplane import ControlPlane
from tools.cluster.daemon import Daemon
from tools.cluster.node import DNS_ADDRESS, Node
from tools.cluster.ports import is_listening, kept_ports

WANTED_PORTS = {"dns": 1053, "ready": 8181}
USER = "system:coredns"
RESOLV_CONF = Path("/etc/resolv.conf")

COREFILE = """\
.:{dns} {{
  errors
  ready 127.0.0.1:{ready}
  cache 10
  kubernetes cluster.local in-addr.arpa ip6.arpa {{
    kubeconfig {kubeconfig}
    fallthrough in-addr.arpa ip6.arpa
  }}
  {forward}
}}
"""


@dataclass(frozen=True)
class Dns:
    """coredns for one cluster."""

    node: Node

    @property
    def control_plane(self) -> ControlPlane:
        return self.node.control_plane

    @property
    def daemon(self) -> Daemon:
        return Daemon("coredns", self.control_plane.state_dir)

    @cached_property
    def ports(self) -> dict[str, int]:
        return kept_ports(self.control_plane.state_dir / "dns-ports.json", WANTED_PORTS)

    def start(self) -> None:
        """Start coredns, unless it runs, and return when it knows the cluster's Services."""
        plane = self.control_plane
        self.node.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(self._manifests()))
        corefile = plane.state_dir / "Corefile"
        kubeconfig = plane.client_kubeconfig("coredns", USER)
        corefile.write_text(COREFILE.format(kubeconfig=kubeconfig, forward=_forward(), **self.ports))
        self.daemon.start([plane.bin / "coredns", "-conf", corefile])
        self.daemon.wait_ready(lambda: is_listening("127.0.0.1", self.ports["ready"]))

    def stop(self) -> None:
        self.daemon.stop()

    def _manifests(self) -> list[dict[str, Any]]:
        ports = [{"name": name, "protocol": kind, "port": 53} for name, kind in (("dns", "UDP"), ("dns-tcp", "TCP"))]
        where = {"name": "kube-dns", "namespace": "kube-system"}
        service = {"clusterIP": DNS_ADDRESS, "ports": ports}
        slice_metadata = {**where, "labels": {"kubernetes.io/service-name": "kube-dns"}}
        endpoint = {"addresses": [self.control_plane.address], "conditions": {"ready": True}}
        targets = [{**port, "port": self.ports["dns"]} for port in ports]
        return [
            {"apiVersion": "v1", "kind": "Service", "metadata": where, "spec": service},
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": slice_metadata,
                "addressType": "IPv4",
                "endpoints": [endpoint],
                "ports": targets,
            },
            *_access(),
        ]


def _access() -> list[dict[str, Any]]:
    rules = [
        {"apiGroups": [""], "resources": ["services", "namespaces", "pods"], "verbs": ["list", "watch"]},
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["list", "watch"]},
    ]
    api = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": f"{api}/v1", "kind": "ClusterRole", "metadata": {"name": USER}, "rules": rules},
        {
            "apiVersion": f"{api}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": USER},
            "roleRef": {"apiGroup": api, "kind": "ClusterRole", "name": USER},
            "subjects": [{"apiGroup": api, "kind": "User", "name": USER}],
        },
    ]


def _forward() -> str:
    """Return the line that sends other names to this machine's resolver; coredns refuses one without servers."""
    servers = re.findall(r"^nameserver", RESOLV_CONF.read_text(), re.MULTILINE) if RESOLV_CONF.exists() else []
    return f"forward . {RESOLV_CONF}" if servers else ""
