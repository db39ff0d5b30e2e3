"""`make release VERSION=x.y.z`: makes the commit and the tag of a release, and pushes nothing."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Final

from release.versions import LOCKED, ReleaseError, Version, current, date_changelog, parse, set_version

ROOT: Final = Path(__file__).resolve().parents[2]
NEXT: Final = """Release {version} is commit {commit}, tag v{version}. Nothing was pushed. Next:
  git push origin HEAD v{version}
  make push REGISTRY=registry.example.com/tunery
  helm package charts/tunery"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="release", description=__doc__)
    parser.add_argument("version", help="x.y.z, newer than the last release")
    parser.add_argument("--check", default="make generate && make verify", help="what must succeed before the commit")
    asked = parser.parse_args()
    try:
        version = parse(asked.version)
        _check_tree()
        _check_newer(version)
        _write(version, asked.check)
        _git("tag", "--annotate", f"v{version}", "--message", f"Release {version}")
    except ReleaseError as error:
        print(f"no release: {error}", file=sys.stderr)
        return 1
    print(NEXT.format(version=version, commit=_git("rev-parse", "--short", "HEAD")))
    return 0


def _check_tree() -> None:
    changed = _git("status", "--porcelain")
    if changed:
        raise ReleaseError(f"the tree has changes that are not committed:\n{changed}")


def _check_newer(version: Version) -> None:
    """Refuse what is not above every release, and what goes back behind the version that the code has."""
    tags = [tag.removeprefix("v") for tag in _git("tag", "--list", "v*.*.*").split()]
    released = max(map(parse, tags), default=None)
    if released is not None and version <= released:
        raise ReleaseError(f"VERSION must be newer than the last release, {released}, is {version}")
    if version < current(ROOT):
        raise ReleaseError(f"VERSION must not be older than what the code says, {current(ROOT)}, is {version}")


def _write(version: Version, check: str) -> None:
    """Write the version everywhere, check, and commit; leave the tree as it was where something of it fails."""
    try:
        set_version(ROOT, version)
        date_changelog(ROOT, version, date.today())
        for project in LOCKED:
            _run([os.environ.get("UV", "uv"), "lock", "--quiet"], ROOT / project)
        _run(["bash", "-euc", check], ROOT)
        _git("add", "--all")
        _git("commit", "--quiet", "--message", f"Release {version}")
    except ReleaseError:
        _git("reset", "--quiet", "--hard")
        raise


def _run(command: list[str], folder: Path) -> None:
    """Run a command in view; raises ReleaseError where it fails."""
    try:
        done = subprocess.run(command, cwd=folder, check=False).returncode
    except OSError as error:
        raise ReleaseError(f"{command[0]} cannot be run: {error}") from error
    if done:
        raise ReleaseError(f"{' '.join(command)!r} failed in {folder.name}; the tree is as it was")


def _git(*arguments: str) -> str:
    """Return what git says; raises ReleaseError with its words where it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ReleaseError(f"git {arguments[0]}: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
