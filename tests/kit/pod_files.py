"""The volumes of a pod as folders of this machine, and its container's paths rewritten to them."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tunery_api.names import RUN_FILE, WORK_DIR
from tunery_common.termination import TERMINATION_PATH_ENV

from kit.operator.api import Api, Json, Refused, eventually

_FROM_HERE = ("PATH", "LANG")
_COVERAGE = "COVERAGE_"


class PodFiles:
    """What the kubelet lays out before it starts the first container of a pod."""

    def __init__(self, api: Api, folder: Path, pod: Json) -> None:
        self._api = api
        self._pod = pod
        self._folder = folder
        self._container = pod["spec"]["containers"][0]
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        self._mounts = {
            mount["mountPath"]: (self._folder_of(volumes[mount["name"]]), volumes[mount["name"]])
            for mount in self._container.get("volumeMounts", [])
        }

    @property
    def termination_message(self) -> str:
        """What the container wrote to its termination message file."""
        return self._message.read_text(errors="replace")

    @property
    def log(self) -> Path:
        """Where the container's output goes."""
        return self._folder / "log"

    @property
    def work(self) -> Path:
        """The folder that the process is started in."""
        return self._folder

    def write(self) -> None:
        """Make the folders and fill them; raises Refused where the API server has not what a volume needs."""
        self._folder.mkdir(parents=True)
        self._message.touch()
        for folder, volume in self._mounts.values():
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in self._files(volume):
                (folder / name).write_bytes(content)

    def command(self) -> list[str]:
        """Return the command line; `python` of the image is the interpreter of the tests."""
        words = [self._local(word) for word in [*self._container["command"], *self._container.get("args", [])]]
        return [sys.executable, *words[1:]] if words[0] == "python" else words

    def environment(self) -> dict[str, str]:
        """Return the variables: the container's, and of this machine's only what every image has."""
        here = {name: value for name, value in os.environ.items() if name in _FROM_HERE or name.startswith(_COVERAGE)}
        own = {each["name"]: self._local(each["value"]) for each in self._container.get("env", [])}
        return {**here, "TMPDIR": self._local("/tmp"), **own, TERMINATION_PATH_ENV: str(self._message)}

    @property
    def _message(self) -> Path:
        return self._folder / "termination-message"

    def _local(self, path: str) -> str:
        """Return a path of the container as a path of this machine; any other text as it is."""
        for mounted in sorted(self._mounts, key=len, reverse=True):
            if path == mounted or path.startswith(f"{mounted}/"):
                return f"{self._mounts[mounted][0]}{path.removeprefix(mounted)}"
        return path

    def _rewritten(self, value: Any) -> Any:
        """Return a JSON value with every path rewritten."""
        if isinstance(value, dict):
            return {key: self._rewritten(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._rewritten(item) for item in value]
        return self._local(value) if isinstance(value, str) else value

    def _folder_of(self, volume: Json) -> Path:
        """Return the folder of a volume: of a claim the one that all pods share."""
        claim = volume.get("persistentVolumeClaim")
        if claim is not None:
            return self._folder.parent / "claims" / self._pod["metadata"]["namespace"] / claim["claimName"]
        return self._folder / "volumes" / volume["name"]

    def _files(self, volume: Json) -> Iterator[tuple[str, bytes]]:
        """Yield the names and contents of the files of a volume."""
        if "downwardAPI" in volume:
            for item in volume["downwardAPI"]["items"]:
                yield item["path"], self._annotation(item)
        elif "secret" in volume:
            data = self._data("secrets", volume["secret"]["secretName"], volume["secret"])
            yield from ((name, base64.b64decode(value)) for name, value in data.items())
        elif "configMap" in volume:
            data = self._data("configmaps", volume["configMap"]["name"], volume["configMap"])
            yield from ((name, value.encode()) for name, value in data.items())
        elif "projected" in volume:
            for source in volume["projected"]["sources"]:
                yield source["serviceAccountToken"]["path"], self._token(source["serviceAccountToken"])

    def _annotation(self, item: Json) -> bytes:
        name = item["fieldRef"]["fieldPath"].removeprefix("metadata.annotations['").removesuffix("']")
        text: str = self._pod["metadata"]["annotations"][name]
        if item["path"] == RUN_FILE:
            # The default of workDir is a path of the container, too.
            text = json.dumps(self._rewritten({"workDir": WORK_DIR} | json.loads(text)))
        return text.encode()

    def _data(self, plural: str, name: str, source: Json) -> Mapping[str, str]:
        """Return the data of a Secret or ConfigMap, empty where it is optional and missing."""
        try:
            data: dict[str, str] = self._request("GET", f"{plural}/{name}").get("data", {})
        except Refused as refused:
            if refused.status == 404 and source.get("optional"):
                return {}
            raise
        chosen = {item["key"]: item["path"] for item in source.get("items", [])} or {key: key for key in data}
        return {path: data[key] for key, path in chosen.items() if key in data}

    def _token(self, source: Json) -> bytes:
        """Return a token of the pod's service account, bound to the pod."""
        meta, account = self._pod["metadata"], self._pod["spec"]["serviceAccountName"]
        bound = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
        spec = {
            "audiences": [source["audience"]],
            "expirationSeconds": source["expirationSeconds"],
            "boundObjectRef": bound,
        }
        answer = self._request("POST", f"serviceaccounts/{account}/token", {"spec": spec})
        return str(answer["status"]["token"]).encode()

    def _request(self, method: str, path: str, body: Json | None = None) -> Json:
        """Return an answer about the pod's namespace; the API server learns a moment late which pods a node has."""

        def ask() -> Json | None:
            try:
                return self._api.call(method, f"/api/v1/namespaces/{self._pod['metadata']['namespace']}/{path}", body)
            except Refused as refused:
                if refused.status == 403:
                    return None
                raise

        return eventually(f"the node may {method} {path}", ask, timeout=10)
