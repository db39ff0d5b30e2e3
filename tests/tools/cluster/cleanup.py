"""Removing what a cluster left on the machine, however it ended."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
from pathlib import Path

from tools.cluster import cgroups
from tools.cluster.containerd import BRIDGE, NETWORK
from tools.cluster.daemon import Daemon
from tools.cluster.shell import CommandFailed, run, succeeds
from tools.cluster.waiting import wait_until

# Only these are ever killed for naming the state folder: an editor or a `tail -f` may name it too.
PROGRAMS = {"kubernetes", "containerd", "containerd-shim-runc-v2", "docker-registry", "weed"}


def clean(state_dir: Path) -> None:
    """End every process of the cluster, then remove its mounts, network, packet rules and state folder."""
    for file in (state_dir / "run").glob("*.pid"):
        Daemon(file.stem, state_dir).stop(timeout=5)
    wait_until(lambda: not _kill_strays(state_dir), "the cluster's processes are gone", timeout=15)
    if os.geteuid() == 0:
        cgroups.remove()
        _unmount(state_dir)
        _remove_network()
        _remove_traces(state_dir)
    shutil.rmtree(state_dir, ignore_errors=True)
    if state_dir.exists():  # something was still being written or unmounted
        wait_until(lambda: _removed(state_dir), f"{state_dir} is removed", timeout=15)


def _removed(folder: Path) -> bool:
    _unmount(folder)
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


def _kill_strays(state_dir: Path) -> list[int]:
    """Kill the cluster's processes that no pid file names (their folder is half gone, or they are shims)."""
    prefix = f"{state_dir}/".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program = os.path.basename(os.readlink(folder / "exe")).removesuffix(" (deleted)")
            if program in PROGRAMS and prefix in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
                os.kill(found[-1], signal.SIGKILL)
    return found


def _unmount(state_dir: Path) -> None:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [line.split()[4].replace("\\040", " ") for line in lines]
    for point in reversed([point for point in points if point.startswith(f"{state_dir}/")]):
        with contextlib.suppress(CommandFailed):
            run(["umount", "--lazy", point])


def _remove_network() -> None:
    if shutil.which("ip") and succeeds(["ip", "link", "show", BRIDGE]):
        run(["ip", "link", "delete", BRIDGE])
    for family in ("iptables", "ip6tables"):
        if shutil.which(f"{family}-save"):
            _remove_rules(family)


def _remove_traces(state_dir: Path) -> None:
    """Remove what kubelet and the network plugins write outside of every folder that they are given."""
    for link in Path("/var/log/containers").glob("*.log"):
        if link.is_symlink() and os.readlink(link).startswith(f"{state_dir}/"):
            link.unlink()
    for result in Path("/var/lib/cni/results").glob(f"{NETWORK}-*"):
        result.unlink()


def _remove_rules(family: str) -> None:
    try:
        saved = run([f"{family}-save"])
    except CommandFailed:
        return
    kept = keep_foreign_rules(saved)
    if kept != saved:
        run([f"{family}-restore"], stdin=kept)


def keep_foreign_rules(saved: str) -> str:
    """Return what `iptables-save` printed, without the chains and rules of Kubernetes and of our pod network."""
    ours = set(re.findall(rf'name: \\?"{NETWORK}\\?".* -j (CNI-\S+)', saved))
    ours |= {chain for chain in re.findall(r"^:(\S+)", saved, re.MULTILINE) if chain.startswith(("KUBE-", "TUNERY-"))}
    words = re.compile(r"(?:^:|^-A |-j )(\S+)")
    lines = [line for line in saved.splitlines() if not ours.intersection(words.findall(line))]
    return "\n".join(lines) + "\n"
