"""An API server without kubectl: a call costs a hundredth of the CPU time of a process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kit.kubectl import Kubectl, KubectlError
from kit.operator.api import Api, Refused

_PLURALS: Final = {
    "AdapterMerge": "adaptermerges",
    "AdapterServer": "adapterservers",
    "BatchInference": "batchinferences",
    "LoRAJob": "lorajobs",
    "LoRASweep": "lorasweeps",
}
_VERSION: Final = "tunery.dev/v1alpha1"
_CONFLICT: Final = 409


class ApiServer(Kubectl):
    """Kubectl whose `apply` and `patch` of Tunery's kinds are calls to the API server, with strict validation.

    An object that exists already is applied by kubectl, which merges.
    """

    def __init__(self, environment: Mapping[str, str], api: Api) -> None:
        super().__init__(environment)
        self._api = api

    def apply(self, *objects: Mapping[str, Any], namespace: str | None = None) -> str:
        """Create `objects`; raises KubectlError with the server's message."""
        if namespace is None or not all(_is_ours(each) for each in objects):
            return super().apply(*objects, namespace=namespace)
        for each in objects:
            path = _path(each["kind"], namespace)
            try:
                self._api.call("POST", f"{path}?fieldValidation=Strict", each)
            except Refused as refused:
                if refused.status == _CONFLICT:
                    super().apply(each, namespace=namespace)
                else:
                    raise KubectlError(str(refused)) from refused
        return "\n".join(f"{each['metadata']['name']} applied" for each in objects)

    def patch(self, kind: str, name: str, patch: Mapping[str, Any], namespace: str, *, status: bool = False) -> None:
        """Merge a patch into an object or its status; raises KubectlError with the server's message."""
        path = f"{_path(kind, namespace)}/{name}" + ("/status" if status else "")
        try:
            self._api.call("PATCH", f"{path}?fieldValidation=Strict", patch, "application/merge-patch+json")
        except Refused as refused:
            raise KubectlError(str(refused)) from refused


def _is_ours(body: Mapping[str, Any]) -> bool:
    return body.get("apiVersion") == _VERSION and body.get("kind") in _PLURALS


def _path(kind: str, namespace: str) -> str:
    return f"/apis/{_VERSION}/namespaces/{namespace}/{_PLURALS[kind]}"
