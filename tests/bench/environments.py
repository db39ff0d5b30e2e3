"""Environments beside the developers' own."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from kit.installation import ROOT
from tools.cluster.paths import cache_dir


def uv() -> str:
    """Return the program that makes environments: that of the Makefile where the machine has none."""
    return os.environ.get("UV") or shutil.which("uv") or str(next(cache_dir().glob("uv-*/bin/uv"), "uv"))


def operators_python() -> Path:
    """Return the Python of an environment with what the operator's image has, and nothing else.

    The developers' has packages that libraries of the operator load where they find them: kubernetes' client loads
    google-auth and with it cryptography, 12 MiB that no operator in a cluster has.
    """
    folder = cache_dir() / "operator-environment"
    command = [uv(), "sync", "--frozen", "--quiet", "--no-dev", "--compile-bytecode", "--project", ROOT / "operator"]
    subprocess.run(command, check=True, env=os.environ | {"UV_PROJECT_ENVIRONMENT": str(folder)})
    return folder / "bin" / "python"
