"""What a Secret for the tests' S3 server holds."""

from __future__ import annotations

from tunery_trainer.storage.credentials import Credentials

from cluster.s3 import Identity, S3Server


def credentials(server: S3Server, who: Identity | None = None, **more: str) -> Credentials:
    values = server.environment()
    if who is not None:
        values |= {"AWS_ACCESS_KEY_ID": who.access_key, "AWS_SECRET_ACCESS_KEY": who.secret_key}
    return Credentials("the Secret s3", values | more)
