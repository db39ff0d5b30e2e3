"""The local cluster keeps no image that later ones of its name have replaced: a disk that fills up evicts pods."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import urllib3

from tools.cluster.registry import KEPT, Registry

CONFIG = b"{}"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
NONE = urllib3.Retry(0)


def test_of_each_name_the_latest_images_are_kept(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "state", "127.0.0.1", tmp_path / "blobs")
    registry.start()
    try:
        layers = [push(registry, "one", number) for number in range(KEPT + 2)] + [push(registry, "other", 0)]
        registry.start()
        assert all(registry.has("one", str(number)) for number in range(KEPT + 2)), "one that runs is left alone"
        registry.stop()
        registry.start()
        assert [registry.has("one", str(number)) for number in range(KEPT + 2)] == [False] * 2 + [True] * KEPT
        assert registry.has("other", "0")
        blobs = {path.parent.name for path in tmp_path.glob("blobs/docker/registry/v2/blobs/*/*/*/data")}
        assert [layer in blobs for layer in layers] == [False, False, *[True] * (KEPT + 1)]
    finally:
        registry.stop()


def push(registry: Registry, name: str, number: int) -> str:
    """Push an image with one layer; return the layer's digest."""
    layer = f"layer {name} {number}".encode()
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _put(registry, name, CONFIG) | {"mediaType": "application/vnd.oci.image.config.v1+json"},
        "layers": [_put(registry, name, layer) | {"mediaType": "application/vnd.oci.image.layer.v1.tar"}],
    }
    url = f"http://{registry.host}/v2/{name}/manifests/{number}"
    headers = {"Content-Type": MANIFEST}
    answer = urllib3.request("PUT", url, body=json.dumps(manifest).encode(), headers=headers, retries=NONE)
    assert answer.status == 201, answer.data
    return hashlib.sha256(layer).hexdigest()


def _put(registry: Registry, name: str, data: bytes) -> dict[str, object]:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    started = urllib3.request("POST", f"http://{registry.host}/v2/{name}/blobs/uploads/", retries=NONE)
    place = started.headers["Location"]
    answer = urllib3.request("PUT", f"{place}&digest={digest}", body=data, retries=NONE)
    assert answer.status == 201, answer.data
    return {"digest": digest, "size": len(data)}
