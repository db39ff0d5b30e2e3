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

    Tokens are read again once a minute, certificates after a failed connection: a rotation needs no restart.
    """

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self._lock = threading.Lock()

    @property
    def host(self) -> str:
        """The URL that paths are appended to, without a slash at its end."""
        return str(self.configuration.host).rstrip("/")

    @property
    def proxy(self) -> str | None:
        """The URL of the proxy to the API server; None: no proxy."""
        proxy: str | None = self.configuration.proxy
        if proxy and should_bypass_proxies(self.host, self.configuration.no_proxy or ""):
            return None
        return proxy or None

    def route(self) -> dict[str, Any]:
        """Return the options of aiohttp that every request needs to reach the API server and no other server."""
        return {
            "proxy": self.proxy,
            "server_hostname": self.configuration.tls_server_name,
            "allow_redirects": False,
        }

    def headers(self) -> dict[str, str]:
        """Return the headers of a request: User-Agent and the current token.

        Call it again after a 401: the token may have been rotated since the last request.
        """
        # The library's refresh changes the configuration in place.
        with self._lock:
            auths: Mapping[str, Any] = self.configuration.auth_settings()
        return {"User-Agent": USER_AGENT} | {auth["key"].title(): auth["value"] for auth in auths.values()}

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return the TLS settings, newly read from the files; None for http://."""
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
    """Return the connection of the pod that the process runs in, or that of the current kubeconfig."""
    configuration = Configuration()
    try:
        load_incluster_config(client_configuration=configuration)
    except ConfigException:
        load_kube_config(client_configuration=configuration)
    return Connection(configuration)
