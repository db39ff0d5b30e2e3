"""Which Secrets, claims and ConfigMaps a pod mounts, and where the trainer finds them."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

from tunery_api.inputs import LocalReference
from tunery_api.names import SECRETS_DIR, VOLUMES_DIR
from tunery_api.runspec import MountedSecret
from tunery_operator.planning.types import SecretMount, VolumeMount


class Opened(NamedTuple):
    """A Secret, or none, and the field that names it."""

    secret: LocalReference | None
    field: str


class Access(NamedTuple):
    """A place that a container opens: what for, its URI, the Secret that opens it, and the field that names that.

    Of the Secret all keys are mounted, or only `key`.
    """

    purpose: str
    uri: str | None
    secret: LocalReference | None
    field: str
    key: str | None = None


def adapter_access(purpose: str, uri: str | None, own: Opened, inherited: Opened) -> Access:
    """Return the access to an adapter: by its own Secret, else by that of an output, which opens no hub."""
    if own.secret is not None or (uri or "").startswith("hf://"):
        return Access(purpose, uri, own.secret, own.field)
    return Access(purpose, uri, inherited.secret, inherited.field)


def secret_mounts(accesses: Iterable[Access]) -> tuple[SecretMount, ...]:
    """Return a mount for each access that names a Secret."""
    return tuple(
        SecretMount(access.purpose, access.secret.name, f"{SECRETS_DIR}/{access.purpose}", access.key)
        for access in accesses
        if access.secret is not None
    )


def volume_mounts(accesses: Iterable[Access]) -> tuple[VolumeMount, ...]:
    """Return a mount for each access whose URI is pvc:// or configmap://."""
    return tuple(itertools.chain.from_iterable(map(_volume, accesses)))


def _volume(access: Access) -> Iterable[VolumeMount]:
    scheme, _, rest = (access.uri or "").partition("://")
    name, path = rest.partition("/")[0], f"{VOLUMES_DIR}/{access.purpose}"
    if scheme == "pvc":
        yield VolumeMount(access.purpose, path, claim=name)
    elif scheme == "configmap":
        yield VolumeMount(access.purpose, path, config_map=name)


def run_secrets(accesses: Iterable[Access]) -> dict[str, MountedSecret]:
    """Return what run.json tells about the Secrets, by purpose."""
    return {
        access.purpose: MountedSecret(
            name=access.secret.name, path=f"{SECRETS_DIR}/{access.purpose}", field=access.field
        )
        for access in accesses
        if access.secret is not None
    }


def run_volumes(mounts: Iterable[VolumeMount]) -> dict[str, str]:
    """Return what run.json tells about the volumes, by purpose."""
    return {mount.purpose: mount.path for mount in mounts}
