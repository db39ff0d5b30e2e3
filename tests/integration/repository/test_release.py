"""make release, in a copy of the repository: one commit and one tag, or nothing at all and a sentence why."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from datetime import date
from pathlib import Path

import pytest
import yaml

from kit.projects import FOLDERS, NAMES, ROOT

Release = Callable[..., subprocess.CompletedProcess[str]]


def git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of its own with what this one holds, committed or not."""
    for person in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{person}_NAME", "tests")
        monkeypatch.setenv(f"GIT_{person}_EMAIL", "tests@example.com")
    listed = git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tmp_path / name)
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message", "All of it")
    return tmp_path


@pytest.fixture
def release(copy: Path) -> Release:
    """Run `make release` there with a check that takes no minute."""

    def run(version: str, check: str = "true") -> subprocess.CompletedProcess[str]:
        command = ["make", "release", f"VERSION={version}", f"RELEASE_CHECK={check}"]
        return subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=120)

    return run


def as_it_was(copy: Path) -> bool:
    return (git(copy, "log", "--format=%s"), git(copy, "tag"), git(copy, "status", "--porcelain")) == (
        "All of it", "", "",
    )  # fmt: skip


@pytest.mark.slow
def test_a_release_is_a_commit_and_a_tag_with_one_version_everywhere(copy: Path, release: Release) -> None:
    seen = 'grep -q "^version = .0.2.0" crds/pyproject.toml'
    done = release("0.2.0", check=seen)
    assert done.returncode == 0, done.stderr
    assert git(copy, "log", "--format=%s") == "Release 0.2.0\nAll of it"
    assert git(copy, "cat-file", "-t", "v0.2.0") == "tag"
    assert git(copy, "rev-parse", "v0.2.0^{commit}") == git(copy, "rev-parse", "HEAD")
    assert git(copy, "status", "--porcelain") == ""
    chart = yaml.safe_load((copy / "charts" / "tunery" / "Chart.yaml").read_text())
    projects = [tomllib.loads((copy / name / "pyproject.toml").read_text())["project"]["version"] for name in FOLDERS]
    assert {*projects, chart["version"], chart["appVersion"]} == {"0.2.0"}
    for name in (*FOLDERS, "tests"):
        packages = tomllib.loads((copy / name / "uv.lock").read_text())["package"]
        assert {package["version"] for package in packages if package["name"] in NAMES} == {"0.2.0"}
    for command in ("git push origin HEAD v0.2.0", "make push REGISTRY=", "helm package charts/tunery"):
        assert command in done.stdout


@pytest.mark.slow
def test_the_changelogs_unreleased_section_is_dated_and_a_new_one_opened(copy: Path, release: Release) -> None:
    before = (copy / "docs" / "changelog.md").read_text()
    assert release("0.1.0").returncode == 0, "the version that the code has was never released"
    after = (copy / "docs" / "changelog.md").read_text()
    heading = re.compile(r"^## (?:0\.1\.0 )?Unreleased$", re.MULTILINE)
    assert after == heading.sub(f"## Unreleased\n\n## 0.1.0 - {date.today().isoformat()}", before)
    again = release("0.1.1")
    assert again.returncode != 0
    assert "no release: docs/changelog.md says nothing under Unreleased" in again.stderr
    assert git(copy, "status", "--porcelain") == ""


@pytest.mark.slow(fast=["v0.2.0"])
@pytest.mark.parametrize("version", ["1", "0.2", "v0.2.0", "0.2.0-rc1", "0.02.0", "latest"])
def test_what_is_no_version_is_refused(copy: Path, release: Release, version: str) -> None:
    done = release(version)
    assert done.returncode != 0
    assert f"no release: VERSION must be x.y.z, such as 0.2.0, is {version!r}" in done.stderr
    assert as_it_was(copy)


def test_a_version_must_be_newer_than_the_last_release_and_not_older_than_the_code(
    copy: Path, release: Release
) -> None:
    old = release("0.0.9")
    assert "no release: VERSION must not be older than what the code says, 0.1.0, is 0.0.9" in old.stderr
    git(copy, "tag", "--annotate", "v0.10.0", "--message", "x")
    git(copy, "tag", "--annotate", "v0.9.0", "--message", "x")
    for version in ("0.9.1", "0.10.0"):
        done = release(version)
        assert done.returncode != 0
        assert f"no release: VERSION must be newer than the last release, 0.10.0, is {version}" in done.stderr


def test_a_tree_with_changes_is_refused(copy: Path, release: Release) -> None:
    (copy / "docs" / "forgotten.md").write_text("x")
    done = release("0.2.0")
    assert done.returncode != 0
    assert "no release: the tree has changes that are not committed:\n?? docs/forgotten.md" in done.stderr
    assert (copy / "docs" / "forgotten.md").exists()


@pytest.mark.slow
def test_where_the_check_fails_nothing_is_left(copy: Path, release: Release) -> None:
    done = release("0.2.0", check="echo half > docs/api.md; false")
    assert done.returncode != 0
    assert "the tree is as it was" in done.stderr
    assert as_it_was(copy)


def test_a_release_is_checked_by_what_is_generated_and_by_verify(copy: Path) -> None:
    planned = subprocess.run(
        ["make", "--dry-run", "release", "VERSION=0.2.0"], cwd=copy, capture_output=True, text=True, check=True
    )
    assert re.search(r"-m tools.release .*--check '\S*make generate && \S*make verify'", planned.stdout)


@pytest.mark.slow
def test_where_the_tag_fails_there_is_no_commit(copy: Path, release: Release) -> None:
    git(copy, "config", "tag.gpgSign", "true")
    git(copy, "config", "gpg.program", "false")
    done = release("0.2.0")
    assert done.returncode != 0
    assert "no release: git tag: " in done.stderr
    assert as_it_was(copy)


@pytest.mark.slow
def test_what_a_check_has_left_goes_too(copy: Path, release: Release) -> None:
    assert release("0.2.0", "touch crds/left.txt; false").returncode != 0
    assert as_it_was(copy)


@pytest.mark.slow
def test_a_release_that_is_ended_leaves_nothing(copy: Path, release: Release) -> None:
    """By SIGTERM, in the middle of the check."""
    assert release("0.2.0", "kill -TERM $$PPID; sleep 5").returncode != 0
    assert as_it_was(copy)


@pytest.mark.slow
def test_a_candidates_tag_is_no_release(copy: Path, release: Release) -> None:
    git(copy, "tag", "v0.2.0-rc1")
    assert release("0.2.0").returncode == 0
    assert set(git(copy, "tag").split()) == {"v0.2.0-rc1", "v0.2.0"}


def test_without_a_branch_there_is_no_release(copy: Path, release: Release) -> None:
    git(copy, "checkout", "--quiet", "--detach")
    done = release("0.2.0")
    assert "no release: HEAD is on no branch" in done.stderr
    assert as_it_was(copy)


@pytest.mark.slow
def test_a_hook_that_refuses_without_a_word_is_told_of(copy: Path, release: Release) -> None:
    hook = copy / ".git" / "hooks" / "pre-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    assert "a hook?" in release("0.2.0").stderr
    assert as_it_was(copy)
