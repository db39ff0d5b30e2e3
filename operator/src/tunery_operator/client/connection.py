"""Provide the address, credentials, and TLS settings of the API server, for requests and for watches."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Final

from kubernetes.client.configuration import Configuration
from kubernetes.client.rest import should_bypass_proxies
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config

USER_AGENT: Final = f"tunery-operator/{version('tunery-operator')}"


class Connection:
    """Address and credentials of the API server; safe to share between threads.

    Nothing of it is kept for longer than a request or a connection: tokens are read again once a minute, certificates
    with each new connection, so whatever rotates them needs no restart.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        """The URL that every path is appended to, without a slash at its end."""
        return str(self.configuration.host).rstrip("/")

    @property
    def proxy(self) -> str | None:
        """The URL of the proxy that leads to the API server, None where the way is direct."""
        proxy: str | None = self.configuration.proxy
        if proxy and should_bypass_proxies(self.host, self.configuration.no_proxy or ""):
            return None
        return proxy or None

    def route(self) -> dict[str, Any]:
        """Return the options of aiohttp that lead each request to the API server, and to no other by a redirect."""
        return {
            "proxy": self.proxy,
            "server_hostname": self.configuration.tls_server_name,
            "allow_redirects": False,
        }

    def headers(self) -> dict[str, str]:
        """Return the headers that each request carries: the name of this program and the token of the moment.

        A watch that answers 401 asks again: the token may have been rotated since the last request.
        """
        # The library's refresh changes the configuration in place.
        with self._lock:
            auths: Mapping[str, Any] = self.configuration.auth_settings()
        return {"User-Agent": USER_AGENT} | {auth["key"].title(): auth["value"] for auth in auths.values()}

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return the TLS settings of a new session, read from the files anew; None for plain http://."""
        if not self.host.startswith("https:"):
            return None
        context = ssl.create_default_context(cafile=self.configuration.ssl_ca_cert)
        if not self.configuration.verify_ssl:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.configuration.cert_file:
            context.load_cert_chain(self.configuration.cert_file, self.configuration.key_file)
        return context


def load_connection() -> Connection:
    """Return the connection of the pod that the process runs in, else that of the current kubeconfig."""
    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)
    except ConfigException:
        load_kube_config(client_configuration=configuration)
    return Connection(configuration)
