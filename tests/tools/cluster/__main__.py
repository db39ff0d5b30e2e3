"""The command line of the local cluster: `python -m tools.cluster up` in the folder tests."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import yaml

from tools.cluster import binaries, disk, images, packages
from tools.cluster.binaries import GoMissing
from tools.cluster.controlplane import ControlPlane
from tools.cluster.daemon import DaemonFailed, end_on_sigterm
from tools.cluster.disk import NoRoom
from tools.cluster.local import LocalCluster, NotRunning
from tools.cluster.machine import NoAddress
from tools.cluster.packages import PackagesMissing
from tools.cluster.paths import REPOSITORY, default_state_dir
from tools.cluster.progress import Progress
from tools.cluster.s3 import WeedMissing
from tools.cluster.shell import CommandFailed
from tools.cluster.waiting import WaitedTooLong

ERRORS = (
    CommandFailed,
    DaemonFailed,
    GoMissing,
    NoAddress,
    NoRoom,
    NotRunning,
    PackagesMissing,
    WaitedTooLong,
    WeedMissing,
)


def up(options: argparse.Namespace) -> None:
    """start everything, or push changed images to a running cluster"""
    disk.check(disk.DEMO, options.state)
    with Progress() as progress:
        LocalCluster(options.state).up(progress)
    sys.stderr.write('The cluster is ready. To use kubectl with it, run: eval "$(make -s cluster-env)"\n')


def down(options: argparse.Namespace) -> None:
    """end everything and remove the state"""
    with Progress() as progress:
        LocalCluster(options.state).down(progress)


def env(options: argparse.Namespace) -> None:
    """print exports for a shell"""
    for name, value in LocalCluster(options.state).environment().items():
        sys.stdout.write(f'export {name}="{value}"\n')


def status(options: argparse.Namespace) -> None:
    """say what runs"""
    for daemon in LocalCluster(options.state).daemons():
        pid = daemon.pid()
        sys.stdout.write(f"{daemon.name:24} {'pid ' + str(pid) if pid else 'not running'}\n")


def build_images(_: argparse.Namespace) -> None:
    """build the images"""
    with Progress() as progress:
        if missing := packages.missing():
            with progress.step("Debian packages"):
                packages.install(missing)
        for image in images.IMAGES:
            with progress.step(f"Build image {image.repository}"), images.snapshot(image) as taken:
                images.build(taken)


def push(options: argparse.Namespace) -> None:
    """build the images, push them to a registry of your own, and write images.yaml for the chart"""
    registry = options.registry.rstrip("/")
    tag, pushed = images.push_elsewhere(registry)
    (REPOSITORY / "images.yaml").write_text(yaml.safe_dump(images.chart_values(pushed)))
    for name, reference in pushed.items():
        sys.stdout.write(f'export TUNERY_{name.upper()}_IMAGE="{reference}"\n')
    sys.stderr.write(f"Install them with -f images.yaml, or with --set image.registry={registry},image.tag={tag}\n")


def engine(options: argparse.Namespace) -> None:
    """bring an engine for AdapterServers to the node: vLLM for CPUs, or the stand-in of the tests"""
    if options.engine == "vllm":
        disk.check(disk.SERVING, options.state)
    with Progress() as progress:
        reference = LocalCluster(options.state).bring_engine(progress, options.engine)
    sys.stdout.write(f'export TUNERY_ENGINE_IMAGE="{reference}"\n')


def build_binaries(_: argparse.Namespace) -> None:
    """build Kubernetes and Helm, which takes minutes the first time"""
    binaries.kubernetes()


def build_neighbours(_: argparse.Namespace) -> None:
    """build Kueue, which only the end-to-end tests need"""
    binaries.kueue()


def control_plane_up(options: argparse.Namespace) -> None:
    """start a control plane alone, without a node"""
    plane = ControlPlane(options.state)
    plane.start()
    sys.stdout.write(f'export KUBECONFIG="{plane.kubeconfig}"\nexport PATH="{plane.bin}:$PATH"\n')


def control_plane_down(options: argparse.Namespace) -> None:
    """end a control plane and remove its state"""
    ControlPlane(options.state).remove()


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "up": up,
    "down": down,
    "env": env,
    "status": status,
    "images": build_images,
    "push": push,
    "engine": engine,
    "binaries": build_binaries,
    "neighbours": build_neighbours,
    "control-plane-up": control_plane_up,
    "control-plane-down": control_plane_down,
}


def main() -> int:
    """Run one command and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tools.cluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.__doc__)
        one.add_argument("--state", type=_state_dir, default=default_state_dir(), help="the cluster's state folder")
        one.set_defaults(command=command)
        if name == "engine":
            one.add_argument("engine", choices=images.ENGINES)
        if name == "push":
            one.add_argument("registry", help="such as registry.example.com/tunery")
    options = parser.parse_args()
    end_on_sigterm()
    try:
        options.command(options)
    except ERRORS as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        # Whoever called it, such as the demo, says what goes on.
        return 130
    return 0


def _state_dir(text: str) -> Path:
    return Path(text).resolve()


if __name__ == "__main__":
    sys.exit(main())
