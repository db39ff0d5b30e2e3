"""Refuse endpoints that are no URL, or that lead to a metadata service on the node."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit

from tunery_api.reasons import FailureReason
from tunery_common.errors import TuneryError


def check_endpoint(endpoint: str, what: str) -> None:
    """Raise INVALID_SPEC if `endpoint` is no http(s) URL or leads to a link-local address (metadata services)."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise TuneryError(FailureReason.INVALID_SPEC, f"{what} is not an http(s) URL")
    if parts.query or parts.fragment:
        raise TuneryError(FailureReason.INVALID_SPEC, f"{what} has a query or a fragment; leave it out")
    try:
        port = parts.port
    except ValueError as error:
        raise TuneryError(FailureReason.INVALID_SPEC, f"{what} is not a URL: {error}") from error
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return  # a name that does not resolve is the connection's error to report
    for *_, address in found:
        if _is_link_local(str(address[0])):
            message = f"{what} leads to the link-local address {address[0]}; no storage or hub is served there"
            raise TuneryError(FailureReason.INVALID_SPEC, message)


def _is_link_local(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_link_local
