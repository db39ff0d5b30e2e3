"""The Go programs of the cluster, built once for each state of their modules."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from tools.cluster import disk, packages
from tools.cluster.paths import PACKAGE, cache_dir, default_state_dir
from tools.cluster.shell import CommandFailed, run

MODULES = PACKAGE / "binaries"
KUBERNETES_NAMES = (
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kubelet",
    "kube-proxy",
    "coredns",
    "kubectl",
)
BUILD_TIMEOUT = 3600
BUILD_ENVIRONMENT = {"CGO_ENABLED": "0", "GOGC": "off", "GOMEMLIMIT": "1536MiB"}
"""Static programs, and compilers that collect garbage only near a limit."""
BUILD_FLAGS = ("-trimpath", "-buildvcs=false", "-gcflags=all=-dwarf=false -l")
"""No debugging data and no inlining."""
HELM_PACKAGE = "helm.sh/helm/v3/cmd/helm"


class GoMissing(Exception):
    """There is no Go toolchain to build the cluster's binaries with."""


def kubernetes() -> Path:
    """Return a folder with every Kubernetes program, etcd, coredns and helm; the first build takes some minutes."""
    folder = _built("kubernetes", ".", HELM_PACKAGE, flags=_version_flags())
    for name in KUBERNETES_NAMES:
        with suppress(FileExistsError):
            (folder / name).symlink_to("kubernetes")
    return folder


def pause() -> Path:
    """Return a folder with the pause program, which holds the namespaces of a pod."""
    return _built("pause")


def kueue() -> Path:
    """Return a folder with Kueue's controller."""
    return _built("kueue", "sigs.k8s.io/kueue/cmd/kueue")


def kueue_chart() -> Path:
    """Return the folder of Kueue's own Helm chart, of the version that is built here."""
    return _source("kueue", "sigs.k8s.io/kueue") / "charts" / "kueue"


def kwok() -> Path:
    """Return a folder with KWOK, which simulates the kubelets of nodes that do not exist."""
    return _built("kwok", "sigs.k8s.io/kwok/cmd/kwok")


def kstatus() -> Path:
    """Return a folder with a program that prints how kstatus, and so Flux, reads objects."""
    return _built("kstatus")


def argolua() -> Path:
    """Return a folder with a program that runs a health check of Argo CD in its Lua interpreter."""
    return _built("argolua")


def _source(name: str, module: str) -> Path:
    """Return where Go keeps the source of a module that the program `name` is built from."""
    told = run([go(), "mod", "download", "-json", module], cwd=MODULES / name, timeout=BUILD_TIMEOUT)
    return Path(json.loads(told)["Dir"])


def _built(name: str, *packages: str, flags: str = "") -> Path:
    """Return a folder with the programs of packages of the module `name` here, by default its own one."""
    source = MODULES / name
    folder = cache_dir() / "bin" / f"{name}-{_digest(source, flags)}"
    folder.mkdir(parents=True, exist_ok=True)
    # Two test sessions may need the same build at once; the second waits for the first.
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / name).exists():
            partial = folder / ".partial"
            partial.mkdir(exist_ok=True)
            command = [go(), "build", *BUILD_FLAGS, f"-ldflags=-s -w {flags}".strip(), "-o", str(partial)]
            # Go compiles into the same cache folder, also where a test has set another XDG_CACHE_HOME.
            environment = BUILD_ENVIRONMENT | {"XDG_CACHE_HOME": str(cache_dir().parent)}
            run([*command, *(packages or ["."])], cwd=source, env=environment, timeout=BUILD_TIMEOUT)
            # The program that was asked for comes last: with it the folder is whole.
            for program in sorted(partial.iterdir(), key=lambda each: each.name == name):
                program.rename(folder / program.name)
    return folder


def go() -> str:
    """Return Go's own program. Raises GoMissing."""
    usual = Path("/usr/local/go/bin/go")  # where the toolchain's own installer puts it, often not on PATH
    found = shutil.which("go") or (str(usual) if usual.exists() else None)
    if found is None:
        raise GoMissing(
            "Go is missing. Fix: install Go 1.26 or newer; the tests build a Kubernetes API server from source."
        )
    return found


def _digest(module: Path, flags: str) -> str:
    digest = hashlib.sha256(f"{os.uname().machine} {BUILD_FLAGS} {BUILD_ENVIRONMENT} {flags}".encode())
    for file in sorted(module.iterdir()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _required_version(module: str, requirement: str) -> str:
    text = (MODULES / module / "go.mod").read_text()
    found = re.search(rf"^(?:require)?\s+{re.escape(requirement)} (v\S+)", text, re.MULTILINE)
    if found is None:
        raise LookupError(f"{requirement} is not required by {module}/go.mod")
    return found.group(1)


def kubernetes_version() -> str:
    """Return the version of Kubernetes that the cluster runs, such as v1.34.4."""
    return _required_version("kubernetes", "k8s.io/kubernetes")


def _version_flags() -> str:
    version = kubernetes_version()
    major, minor = version.removeprefix("v").split(".")[:2]
    variables = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
    values = {f"k8s.io/component-base/version.{name}": value for name, value in variables.items()}
    values["helm.sh/helm/v3/internal/version.version"] = _required_version("kubernetes", "helm.sh/helm/v3")
    return " ".join(f"-X {name}={value}" for name, value in values.items())


def _yield_cpu() -> None:
    """Let all else go first: Linux weighs sessions against each other, and by `nice` the processes of a session."""
    os.nice(15)
    with suppress(OSError):
        if os.getsid(0) == os.getpid():
            Path("/proc/self/autogroup").write_text("15")


def main() -> int:
    """Build Kubernetes and Helm; with the name of a target, only look whether the machine can build it."""
    try:
        go()
        if sys.argv[1:]:
            (goal,) = sys.argv[1:]
            if goal != disk.TEST:
                packages.missing()
            disk.check(goal, default_state_dir())
        else:
            _yield_cpu()
            kubernetes()
    except (GoMissing, CommandFailed, disk.NoRoom, packages.PackagesMissing) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
