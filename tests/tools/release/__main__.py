"""`make release VERSION=x.y.z`: makes the commit and the tag of a release, and pushes nothing."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Final, NoReturn

from tools.release.versions import (
    LOCKED,
    ReleaseError,
    Version,
    current,
    date_changelog,
    is_version,
    parse,
    set_version,
)

ROOT: Final = Path(__file__).resolve().parents[3]
NEXT: Final = """Release {version} is commit {commit}, tag v{version}. Nothing was pushed. Next:
  git push origin HEAD v{version}
  make push REGISTRY=registry.example.com/tunery
  helm package charts/tunery"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="release", description=__doc__)
    parser.add_argument("version", help="x.y.z, newer than the last release")
    parser.add_argument("--check", default="make generate && make verify", help="what must succeed before the commit")
    asked = parser.parse_args()
    signal.signal(signal.SIGTERM, _end)
    try:
        version = parse(asked.version)
        _check_tree()
        _check_newer(version)
        _write(version, asked.check)
    except ReleaseError as error:
        print(f"no release: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("no release: it was ended; the tree is as it was", file=sys.stderr)
        return 130
    print(NEXT.format(version=version, commit=_git("rev-parse", "--short", "HEAD")))
    return 0


def _end(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _check_tree() -> None:
    _git("symbolic-ref", "--quiet", "HEAD", failing="HEAD is on no branch: the release's commit would be lost")
    changed = _git("status", "--porcelain")
    if changed:
        raise ReleaseError(f"the tree has changes that are not committed:\n{changed}")


def _check_newer(version: Version) -> None:
    """Refuse what is not above every release, and what goes back behind the version that the code has."""
    tags = [tag.removeprefix("v") for tag in _git("tag", "--list", "v*.*.*").split()]
    released = max((parse(tag) for tag in tags if is_version(tag)), default=None)
    if released is not None and version <= released:
        raise ReleaseError(f"VERSION must be newer than the last release, {released}, is {version}")
    if version < current(ROOT):
        raise ReleaseError(f"VERSION must not be older than what the code says, {current(ROOT)}, is {version}")


def _write(version: Version, check: str) -> None:
    """Write the version everywhere, check, commit and tag; leave all as it was where something fails or ends it."""
    before = _git("rev-parse", "HEAD")
    try:
        set_version(ROOT, version)
        date_changelog(ROOT, version, date.today())
        for project in LOCKED:
            _run([os.environ.get("UV", "uv"), "lock", "--quiet"], ROOT / project)
        _run(["bash", "-euc", check], ROOT)
        _git("add", "--all")
        _git("commit", "--quiet", "--message", f"Release {version}")
        _git("tag", "--annotate", f"v{version}", "--message", f"Release {version}")
    except BaseException:
        _git("reset", "--quiet", "--hard", before)
        # Nothing that is not committed was there when it began.
        _git("clean", "--quiet", "--force", "-d")
        raise


def _run(command: list[str], folder: Path) -> None:
    """Run a command in view; raises ReleaseError where it fails."""
    try:
        done = subprocess.run(command, cwd=folder, check=False).returncode
    except OSError as error:
        raise ReleaseError(f"{command[0]} cannot be run: {error}") from error
    if done:
        raise ReleaseError(f"{' '.join(command)!r} failed in {folder.name}; the tree is as it was")


def _git(*arguments: str, failing: str = "") -> str:
    """Return what git says; raises ReleaseError with `failing`, else with git's words, where it fails."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        said = done.stderr.strip() or done.stdout.strip() or f"ended with {done.returncode} and no word; a hook?"
        raise ReleaseError(failing or f"git {arguments[0]}: {said}")
    return done.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
