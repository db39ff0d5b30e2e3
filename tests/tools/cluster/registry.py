"""A container registry on the node, so that pods pull images as they do anywhere."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from tools.cluster.daemon import Daemon
from tools.cluster.ports import is_listening, kept_ports
from tools.cluster.shell import run

WANTED_PORT = 5000
KEPT = 3
"""Images of each name that are kept, the latest: each change of a source makes one, of up to a gigabyte."""
MANIFEST_TYPES = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json"


@dataclass(frozen=True)
class Registry:
    """The registry of one cluster; its blobs outlive it, so that images are built and pushed once."""

    state_dir: Path
    address: str
    storage: Path

    @cached_property
    def host(self) -> str:
        """The `address:port` with which image names start."""
        ports = kept_ports(self.state_dir / "registry-port.json", {"registry": WANTED_PORT})
        return f"{self.address}:{ports['registry']}"

    @property
    def daemon(self) -> Daemon:
        return Daemon("registry", self.state_dir)

    def start(self) -> None:
        """Start the registry, unless it runs, and return when it answers."""
        port = int(self.host.rpartition(":")[2])
        config = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}, "delete": {"enabled": True}},
            "http": {"addr": f"0.0.0.0:{port}"},
        }
        file = self.state_dir / "registry.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(config))
        if not self.daemon.is_running():
            self._forget_old(file)
        self.daemon.start(["docker-registry", "serve", file])
        self.daemon.wait_ready(lambda: is_listening(self.address, port))

    def stop(self) -> None:
        self.daemon.stop()

    def _forget_old(self, config: Path) -> None:
        """Remove the images that later ones of the same name have replaced, with what only they needed."""
        old = []
        for tags in self.storage.glob("docker/registry/v2/repositories/*/_manifests/tags"):
            old += sorted(tags.iterdir(), key=lambda tag: (tag / "current" / "link").stat().st_mtime)[:-KEPT]
        for tag in old:
            shutil.rmtree(tag)
        if old:
            run(["docker-registry", "garbage-collect", "--delete-untagged", config])

    def has(self, repository: str, tag: str) -> bool:
        """Tell whether the registry holds an image."""
        url = f"http://{self.host}/v2/{repository}/manifests/{tag}"
        request = urllib.request.Request(url, method="HEAD", headers={"Accept": MANIFEST_TYPES})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as answer:
                return bool(answer.status == 200)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise
