"""Take a URI apart."""

from __future__ import annotations

from urllib.parse import unquote


def beside(uri: str, word: str) -> str:
    """Return the place `<uri>-<word>`, or, where `uri` is a whole bucket, the folder `word` in it."""
    place = uri.rstrip("/")
    return f"{place}-{word}" if "/" in place.partition("://")[2] else f"{place}/{word}"


def split_uri(uri: str) -> tuple[str, str, str]:
    """Return scheme, authority (bucket, claim, owner) and path of a URI; `?` and `#` belong to the path (globs).

    Percent signs are decoded in file:// URIs only.
    """
    scheme, _, rest = uri.partition("://")
    authority, _, path = rest.partition("/")
    return scheme, authority, (unquote(path) if scheme == "file" else path).strip("/")
