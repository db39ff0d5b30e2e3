"""What run.json says is mounted: the Secret that opens each URI, claims and ConfigMaps, the places of the result."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tunery_api.runspec import Purpose, RunSpec
from tunery_common.inputs.location import Location
from tunery_common.storage import StorePath, open_store
from tunery_common.storage.credentials import HUB_KEYS, S3_KEYS, Credentials, ambient, from_secret

_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    Purpose.WANDB: ("WANDB_API_KEY",),
    Purpose.MLFLOW: (),
}
"""Keys that a Secret must hold whatever the URI."""


@dataclass(frozen=True)
class Mounts:
    """Made once by a program, and handed to whatever reads from outside or writes to the disk.

    A Secret is read anew whenever something is opened: it may have been rotated while a GPU trained.
    """

    run: RunSpec

    def folder(self, name: str) -> Path:
        """Return a folder below the work directory, made if need be."""
        folder = Path(self.run.work_dir) / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def credentials(self, purpose: str, uri: str = "") -> Credentials:
        """Return what opens `uri`: the Secret that is mounted for `purpose`, else the process's own identity.

        Raises TuneryError(SecretNotFound), naming the field, the Secret and the missing keys.
        """
        secret = self.run.secrets.get(purpose)
        if secret is None:
            return ambient()
        needed = _NEEDS.get(purpose, ())
        keys = S3_KEYS if uri.startswith("s3://") else HUB_KEYS if uri.startswith("hf://") else needed
        return from_secret(Path(secret.path), secret.name, keys, secret.field, self.run.identity.namespace)

    def location(self, purpose: Purpose, uri: str, revision: str | None = None) -> Location:
        """Return where `uri` lies and what opens it, mounted or not; nothing is contacted yet."""
        mount = self.run.volumes.get(purpose)
        return Location(
            uri,
            self.credentials(purpose, uri),
            mount=Path(mount) if mount else None,
            revision=revision,
            allow_file=self.run.local,
            disk=self.run.disk,
            namespace=self.run.identity.namespace,
        )

    def open(self, purpose: str, uri: str, field: str) -> StorePath:
        """Return the place that `uri` names; `field` named it, for messages. Nothing is contacted yet."""
        mount = self.run.volumes.get(purpose)
        return open_store(uri, self.credentials(purpose, uri), field, Path(mount) if mount else None)

    @property
    def output(self) -> StorePath:
        """The place of the result."""
        return self.open(Purpose.OUTPUT, self.run.output_uri, "spec.output.uri")

    @property
    def checkpoints(self) -> StorePath | None:
        """Where checkpoints are kept, or the answered parts of a batch; None where the platform named no place."""
        uri = self.run.checkpoint_uri
        field = "--work-dir" if self.run.local else "spec.output.uri"
        return self.open(Purpose.OUTPUT, uri, field) if uri is not None else None
