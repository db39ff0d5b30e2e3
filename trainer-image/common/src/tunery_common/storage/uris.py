"""Take a URI apart."""

from __future__ import annotations

from urllib.parse import unquote


def split_uri(uri: str) -> tuple[str, str, str]:
    """Return scheme, authority (bucket, claim, owner) and path of a URI; `?` and `#` belong to the path (globs).

    Percent signs are decoded in file:// URIs only. An empty part at the start stays, and no store takes it: it would be
    another text for the same place.
    """
    scheme, _, rest = uri.partition("://")
    authority, _, path = rest.partition("/")
    return scheme, authority, (unquote(path) if scheme == "file" else path).rstrip("/")
