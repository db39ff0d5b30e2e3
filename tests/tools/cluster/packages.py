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
    "debootstrap": "debootstrap",
    "buildah": "buildah",
    "ip": "iproute2",
    "mount": "mount",
}
CNI_PLUGINS = "/usr/lib/cni"
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class PackagesMissing(Exception):
    """Programs are missing and cannot be installed from here."""


def missing() -> list[str]:
    """Return the packages whose programs are not on this machine."""
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_PATH}"
    packages = [package for program, package in PROGRAMS.items() if not shutil.which(program, path=path)]
    if not os.path.exists(f"{CNI_PLUGINS}/bridge"):
        packages.append("containernetworking-plugins")
    return packages


def ensure() -> None:
    """Install what is missing, as root on Debian or Ubuntu; raise PackagesMissing elsewhere."""
    needed = missing()
    if os.geteuid() != 0:
        raise PackagesMissing("the local cluster runs containers and must be started as root (sudo make cluster-up)")
    if not needed:
        return
    if not shutil.which("apt-get"):
        raise PackagesMissing(f"install these packages: {' '.join(needed)}")
    quiet = {"DEBIAN_FRONTEND": "noninteractive"}
    run(["apt-get", "-q", "update"], env=quiet)
    run(["apt-get", "-q", "install", "-y", "--no-install-recommends", *needed], env=quiet, timeout=900)
