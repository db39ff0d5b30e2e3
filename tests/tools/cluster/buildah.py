"""Building and pushing images without a container engine."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tools.cluster.paths import cache_dir
from tools.cluster.shell import run, succeeds

BUILD_TIMEOUT = 3600
# buildah lowers its own limits to this before a RUN, and may not be allowed to raise them again.
HIGHEST_LIMIT = 32768
# What tells pip and uv where packages come from; passed to the builds as a secret, never kept in an image.
INDEX_VARIABLES = (
    *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST"),
    *("UV_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX", "UV_EXTRA_INDEX_URL"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)
CERTIFICATE_VARIABLES = ("SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE")
CERTIFICATES_IN_BUILD = "/run/secrets/ca.pem"


def _buildah() -> list[str]:
    storage = cache_dir() / "buildah"
    flags = ["--storage-driver", "overlay", "--root", str(storage / "root"), "--runroot", str(storage / "run")]
    return ["nice", "buildah", *flags]


def has(image: str) -> bool:
    """Tell whether the image is in the local storage."""
    return succeeds([*_buildah(), "inspect", "--type", "image", image])


def build(image: str, dockerfile: Path, context: Path, arguments: Mapping[str, str]) -> None:
    """Build an image with the layers of earlier builds as a cache."""
    command = [*_buildah(), "bud", "--layers", "--isolation", "chroot", "--network", "host", *_ulimits()]
    command += [*_secrets(), "--tag", image, "--file", str(dockerfile)]
    for name, value in arguments.items():
        command += ["--build-arg", f"{name}={value}"]
    run([*command, context], timeout=BUILD_TIMEOUT)


def names(repository: str) -> list[str]:
    """Return the names, with their tags, of the images of a repository in the local storage."""
    listed = run([*_buildah(), "images", "--format", "{{.Name}}:{{.Tag}}"])
    return [name for name in listed.splitlines() if name.startswith(f"{repository}:")]


def remove(images: Iterable[str]) -> None:
    """Remove images from the local storage, except one that a build uses just now."""
    for image in images:
        succeeds([*_buildah(), "rmi", image])


def push(image: str, destination: str, *, local: bool = False) -> str:
    """Push an image to `host/repository:tag` and return its digest.

    `local` for a registry on this machine: without TLS, packed fast.
    """
    flags = ["--tls-verify=false", "--compression-format=zstd", "--compression-level=1"] if local else []
    with tempfile.NamedTemporaryFile("r") as digest:
        flags += ["--digestfile", digest.name]
        run([*_buildah(), "push", "--quiet", *flags, image, f"docker://{destination}"], timeout=BUILD_TIMEOUT)
        return digest.read().strip()


def _ulimits() -> list[str]:
    """Return the present limits: buildah's defaults are higher than some machines allow."""
    limits = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    flags = []
    for name, number in limits.items():
        hard = resource.getrlimit(number)[1]
        if hard != resource.RLIM_INFINITY:
            limit = min(hard, HIGHEST_LIMIT)
            flags += ["--ulimit", f"{name}={limit}:{limit}"]
    return flags


def _secrets() -> list[str]:
    """Return flags that give RUN steps this machine's package index, its certificate authorities and its uv."""
    lines = [f"{name}='{os.environ[name]}'" for name in INDEX_VARIABLES if name in os.environ]
    mounted = {name: (path, f"/run/{name}") for name, path in _uv().items()}
    lines += [f"{name}={inside}" for name, (_, inside) in mounted.items()]
    certificates = next((os.environ[name] for name in CERTIFICATE_VARIABLES if os.environ.get(name)), None)
    flags = [f"--volume={path}:{inside}" for path, inside in mounted.values()]
    if certificates and Path(certificates).is_file():
        lines += [f"{name}={CERTIFICATES_IN_BUILD}" for name in CERTIFICATE_VARIABLES]
        flags += ["--secret", f"id=ca.pem,src={certificates}"]
    file = cache_dir() / "build.env"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text("\n".join(lines) + "\n")
    return [*flags, "--secret", f"id=build.env,src={file}"]


def _uv() -> dict[str, Path]:
    """Return what builds use of this machine's uv, by the variable that names it there.

    `make setup` has filled the cache, and has installed uv where the machine has none of its own.
    """
    cache = Path(os.environ.get("UV_CACHE_DIR") or cache_dir().parent / "uv")
    cache.mkdir(parents=True, exist_ok=True)
    program = next(cache_dir().glob("uv-*/bin/uv"), None)
    return {"UV_CACHE_DIR": cache} | ({"UV": program} if program else {})
