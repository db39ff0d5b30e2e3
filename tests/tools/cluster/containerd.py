"""The container runtime of the node, with its own root, state, socket and pod network."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tools.cluster.daemon import Daemon
from tools.cluster.packages import CNI_PLUGINS, SYSTEM_PATH
from tools.cluster.shell import run, succeeds

POD_RANGE = "10.244.0.0/24"
BRIDGE = "tunery0"
NETWORK = "tunery"
PULL_TIMEOUT = 1800

CONFIG = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs"]

[grpc]
  address = "{socket}"

[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  restrict_oom_score_adj = true
  # Under our own folder, a killed cluster's network namespaces are found and unmounted.
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{plugins}"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{folder}/registries"
"""


@dataclass(frozen=True)
class Containerd:
    """containerd for one node."""

    state_dir: Path

    @property
    def folder(self) -> Path:
        return self.state_dir / "containerd"

    @property
    def socket(self) -> Path:
        return self.folder / "containerd.sock"

    @property
    def daemon(self) -> Daemon:
        return Daemon("containerd", self.state_dir)

    def start(self, pause_image: str, registry: str) -> None:
        """Start containerd, unless it runs, and return when it answers."""
        self._write_network()
        self._write_registry(registry)
        config = self.folder / "config.toml"
        config.write_text(CONFIG.format(folder=self.folder, socket=self.socket, pause=pause_image, plugins=CNI_PLUGINS))
        self.daemon.start(["containerd", "--config", config], env={"PATH": SYSTEM_PATH})
        self.daemon.wait_ready(lambda: succeeds(["ctr", "--address", self.socket, "version"]))

    def stop(self) -> None:
        self.daemon.stop()

    def pull(self, reference: str) -> None:
        """Bring an image onto the node now, so that no pod waits for gigabytes later."""
        address = ["--address", str(self.socket), "--namespace", "k8s.io"]
        run(["ctr", *address, "images", "pull", "--plain-http", reference], timeout=PULL_TIMEOUT)

    def _write_network(self) -> None:
        ipam = {
            "type": "host-local",
            "ranges": [[{"subnet": POD_RANGE}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(self.folder / "addresses"),
        }
        bridge = {"type": "bridge", "bridge": BRIDGE, "isGateway": True, "ipMasq": True, "hairpinMode": True}
        plugins = [{**bridge, "ipam": ipam}, {"type": "portmap", "capabilities": {"portMappings": True}}]
        folder = self.folder / "cni"
        folder.mkdir(parents=True, exist_ok=True)
        network = {"cniVersion": "0.4.0", "name": NETWORK, "plugins": plugins}
        (folder / "10-tunery.conflist").write_text(json.dumps(network, indent=2))

    def _write_registry(self, registry: str) -> None:
        folder = self.folder / "registries" / registry
        folder.mkdir(parents=True, exist_ok=True)
        host = f'server = "http://{registry}"\n\n[host."http://{registry}"]\n  capabilities = ["pull", "resolve"]\n'
        (folder / "hosts.toml").write_text(host)
