"""The Debian packages that a node and the image builds need."""

from __future__ import annotations

import os
import shutil

from tools.cluster.shell import run

# program that must be there → package that holds it
PROGRAMS = {
    "containerd": "containerd",
    "runc": "runc",
    "docker-registry": "docker-registry",
    "iptables-save": "iptables",
    "conntrack": "conntrack",
    "mmdebstrap": "mmdebstrap",
    "buildah": "buildah",
    "ip": "iproute2",
    "mount": "mount",
}
CNI_PLUGINS = "/usr/lib/cni"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class PackagesMissing(Exception):
    """Programs are missing and cannot be installed from here."""


def missing() -> list[str]:
    """Return the packages to install; raise PackagesMissing where this process cannot install any."""
    if os.geteuid() != 0:
        raise PackagesMissing("The local cluster runs containers. Fix: run make as root (sudo -i opens a shell).")
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"
    packages = [package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)]
    if not os.path.exists(f"{CNI_PLUGINS}/bridge"):
        packages.append("containernetworking-plugins")
    if packages and not shutil.which("apt-get"):
        raise PackagesMissing(f"install these packages: {' '.join(packages)}")
    return packages


def install(packages: list[str]) -> None:
    """Install packages of Debian or Ubuntu."""
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "-q", "update"], env=quiet)
    run(["apt-get", "-q", "install", "-y", "--no-install-recommends", *packages], env=quiet, timeout=900)
