"""An API server without kubectl: a call costs a hundredth of the CPU time of a process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlencode

from kit.kubectl import Kubectl, KubectlError
from kit.operator.api import Api, Json, Refused

_CONFLICT = 409
_DISCOVERY = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"


class Resource(NamedTuple):
    """A resource of the API: its plural, whether it is in namespaces, and the path of its group and version."""

    plural: str
    namespaced: bool
    root: str


class ApiServer(Kubectl):
    """Kubectl whose methods are calls to the API server, with strict validation; `run` is still kubectl itself."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        super().__init__(environment)
        self.api = Api(Path(environment["KUBECONFIG"]))
        self._resources: dict[str, Resource] = {}

    def using(self, kubeconfig: Path) -> Self:
        """Return the same API server as the user of another kubeconfig."""
        return type(self)(self.environment | {"KUBECONFIG": str(kubeconfig)})

    def create(
        self, body: Mapping[str, Any], namespace: str | None = None, *, dry_run: bool = False, user: str = ""
    ) -> Json:
        """Create an object, as `user` where one is given; raises KubectlError with the server's message."""
        namespace = body["metadata"].get("namespace", namespace) if "metadata" in body else namespace
        path = self._path(body["kind"], namespace)
        headers = {"Impersonate-User": user} if user else {}
        return self._call("POST", path, body, dry_run=dry_run, **headers)

    def apply(self, *objects: Mapping[str, Any], namespace: str | None = None) -> str:
        """Create `objects`, and let kubectl merge those that exist; raises KubectlError with the server's message."""
        for each in objects:
            try:
                self.create(each, namespace)
            except KubectlError as error:
                if not isinstance(error.__cause__, Refused) or error.__cause__.status != _CONFLICT:
                    raise
                super().apply(each, namespace=namespace)
        return "\n".join(f"{each['metadata']['name']} applied" for each in objects)

    def patch(
        self, kind: str, name: str, patch: Mapping[str, Any], namespace: str, *, status: bool = False,
        dry_run: bool = False,
    ) -> Json:  # fmt: skip
        """Merge a patch into an object or its status; raises KubectlError with the server's message."""
        path = f"{self._path(kind, namespace)}/{name}" + ("/status" if status else "")
        return self._call("PATCH", path, patch, "application/merge-patch+json", dry_run=dry_run)

    def get(self, kind: str, name: str, namespace: str | None = None) -> Json | None:
        """Return one object, or None where there is none."""
        return self.api.get(f"{self._path(kind, namespace)}/{name}")

    def list(self, kind: str, namespace: str | None = None, selector: str = "") -> list[Json]:
        """Return the objects of a kind."""
        query = f"?{urlencode({'labelSelector': selector})}" if selector else ""
        return self.api.items(self._path(kind, namespace) + query)

    def _call(
        self, method: str, path: str, body: object, content: str = "application/json", *, dry_run: bool, **headers: str
    ) -> Json:
        query = "?fieldValidation=Strict" + ("&dryRun=All" if dry_run else "")
        try:
            return self.api.call(method, path + query, body, content, **headers)
        except Refused as refused:
            raise KubectlError(str(refused)) from refused

    def _path(self, kind: str, namespace: str | None) -> str:
        """Return the path of a kind's list; `kind` is any name that kubectl takes."""
        name = kind.lower()
        if name not in self._resources:
            self._resources = self._discovered()
        if name not in self._resources:
            raise KubectlError(f'the server doesn\'t have a resource type "{kind}"')
        found = self._resources[name]
        where = f"namespaces/{namespace}/" if namespace is not None and found.namespaced else ""
        return f"{found.root}/{where}{found.plural}"

    def _discovered(self) -> dict[str, Resource]:
        """Return the resources of the preferred version of each group, by each of their names."""
        resources: dict[str, Resource] = {}
        for root in ("/api", "/apis"):
            for group in self.api.call("GET", root, Accept=_DISCOVERY)["items"]:
                name, version = group["metadata"].get("name", ""), group["versions"][0]
                for each in version["resources"]:
                    path = f"{root}/{name}/{version['version']}" if name else f"{root}/{version['version']}"
                    found = Resource(each["resource"], each["scope"] == "Namespaced", path)
                    plain = {found.plural, each.get("singularResource", ""), *each.get("shortNames", [])}
                    plain |= {each["responseKind"]["kind"].lower(), f"{found.plural}.{name}"}
                    for word in plain - {""}:
                        # The first group wins, as with kubectl: `events` are those of the core.
                        resources.setdefault(word, found)
        return resources
