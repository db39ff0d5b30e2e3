"""The Debian base image with Python on which the product's images are built where no registry offers one."""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from pathlib import Path
from typing import Final

from tools.cluster import buildah
from tools.cluster.paths import cache_dir
from tools.cluster.shell import run

PACKAGES: Final = (
    *("python3", "python3-venv", "ca-certificates"),
    *("gcc", "libc6-dev", "libpython3-dev"),  # Triton compiles against Python.h
    "libnuma1",  # vLLM
)
UNUSED: Final = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*")
DOCKERFILE: Final = (
    "FROM scratch\nADD rootfs.tar /\nENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
)


class NoMirror(Exception):
    """The machine's apt sources name no mirror of its own release."""


def ensure() -> str:
    """Return the name of the base image in the local storage, made the first time."""
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    recipe = hashlib.sha256(json.dumps([PACKAGES, UNUSED, DOCKERFILE]).encode()).hexdigest()[:8]
    image = f"localhost/tunery-base:{release}-{recipe}"
    if not buildah.has(image):
        _build(image, release)
    return image


def _build(image: str, release: str) -> None:
    cache_dir().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir()) as folder:
        command = ["nice", "mmdebstrap", "--quiet", "--variant=essential", f"--include={','.join(PACKAGES)}"]
        # As dpkg's path-exclude, the unused paths would start a Python filter for each package.
        remove = " ".join(["rm", "-rf", *(f'"$1"{path}' for path in UNUSED)])
        command += ['--aptopt=Acquire::Languages "none"', f"--customize-hook={remove}"]
        run([*command, release, f"{folder}/rootfs.tar", _mirror(release)], timeout=1200)
        dockerfile = Path(folder, "Dockerfile")
        dockerfile.write_text(DOCKERFILE)
        buildah.build(image, dockerfile, Path(folder), {})


def _mirror(release: str) -> str:
    """Return the first mirror of the release that this machine's own apt sources name."""
    lines = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"])
    for line in lines.splitlines():
        uri, suite, component = line.split()
        if suite == release and component == "main":
            return uri
    raise NoMirror(f"no apt source of this machine offers {release} main, from which the base image is made")
