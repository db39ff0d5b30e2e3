"""Debian base images with Python, made by debootstrap where no registry offers one."""

from __future__ import annotations

import platform
import shutil
import tempfile
from pathlib import Path

from tools.cluster import buildah
from tools.cluster.paths import cache_dir
from tools.cluster.shell import run

PACKAGES = ("python3", "python3-venv", "ca-certificates")
UNUSED = ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale")
# Raised when the way the images are made changes.
RECIPE = 1
DOCKERFILE = "FROM scratch\nADD rootfs.tar /\nENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"


class NoMirror(Exception):
    """The machine's apt sources name no mirror of its own release."""


def ensure(more: tuple[str, ...] = ()) -> str:
    """Return the name of the base image with `more` packages in the local storage, made the first time."""
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    image = f"localhost/tunery-base:{'-'.join((release, *more, str(RECIPE)))}"
    if not buildah.has(image):
        _build(image, release, (*PACKAGES, *more))
    return image


def _build(image: str, release: str, packages: tuple[str, ...]) -> None:
    parent = cache_dir() / "base"
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        root, context = Path(folder, "rootfs"), Path(folder, "context")
        context.mkdir()
        include = f"--include={','.join(packages)}"
        run(["nice", "debootstrap", "--variant=minbase", include, release, root, _mirror(release)], timeout=1200)
        for path in UNUSED:
            shutil.rmtree(root / path, ignore_errors=True)
        run(["tar", "--numeric-owner", "-C", root, "-cf", context / "rootfs.tar", "."])
        (context / "Dockerfile").write_text(DOCKERFILE)
        buildah.build(image, context / "Dockerfile", context, {})


def _mirror(release: str) -> str:
    """Return the first mirror of the release that this machine's own apt sources name."""
    lines = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"])
    for line in lines.splitlines():
        uri, suite, component = line.split()
        if suite == release and component == "main":
            return uri
    raise NoMirror(f"no apt source of this machine offers {release} main, from which the base image is made")
