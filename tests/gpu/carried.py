"""What a bare GPU machine lacks: collected here as wheels of the locked versions, unpacked there without the network.

    python -m gpu.carried FOLDER [--python 3.12] [--cuda 130]

torch and the libraries of CUDA are the machine's own: they are too large to carry.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gpu.registry import ROOT

NAMES: Final = (
    *("bitsandbytes", "transformers", "trl", "peft", "accelerate", "tokenizers", "safetensors", "datasets"),
    *("dill", "multiprocess", "xxhash", "pydantic", "pydantic-core", "annotated-types", "typing-inspection"),
    *("typing-extensions", "huggingface-hub", "httpx2", "httpcore2", "truststore", "hf-xet", "regex", "click"),
    *("boto3", "botocore", "s3transfer", "jmespath", "urllib3", "python-dateutil", "six", "zstandard", "pyyaml"),
)
"""Beside torch and Triton all that a training run imports, but for what is with any torch: numpy, pandas, pyarrow."""
_PLATFORMS: Final = tuple(
    f"manylinux{suffix}_x86_64" for suffix in ("_2_34", "_2_28", "_2_27", "_2_24", "_2_17", "2014", "_2_5", "1")
)
_LIMIT: Final = 60 * 2**20
"""Bytes that a machine which is lent takes along in one call, less what the repository itself needs."""
_SERVICES: Final = ("s3", "sts", "sso", "sso-oidc")
_OWN: Final = {"tunery_trainer": "trainer-image", "tunery_common": "trainer-image/common", "tunery_api": "crds"}


def collect(folder: Path, python: str, cuda: str) -> int:
    """Download the wheels into `folder`, without what they hold for others, and return their bytes.

    Raises SystemExit where bitsandbytes has no library for `cuda`.
    """
    lock = tomllib.loads((ROOT / "trainer-image" / "uv.lock").read_text())
    versions = {package["name"]: package["version"] for package in lock["package"] if "version" in package}
    platforms = [part for platform in _PLATFORMS for part in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", *platforms, "--dest", str(folder)]
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.whl"):
        old.unlink()
    subprocess.run([*command, *(f"{name}=={versions[name]}" for name in NAMES)], check=True)
    for wheel in folder.glob("bitsandbytes-*.whl"):
        if f"bitsandbytes/libbitsandbytes_cuda{cuda}.so" not in zipfile.ZipFile(wheel).namelist():
            raise SystemExit(f"{wheel.name} has no library for CUDA {cuda}")
        _leave_out(wheel, lambda name: _other_library(name, f"libbitsandbytes_cuda{cuda}.so"))
    for wheel in folder.glob("botocore-*.whl"):
        _leave_out(wheel, _other_service)
    return sum(path.stat().st_size for path in folder.glob("*.whl"))


def _leave_out(wheel: Path, left_out: Callable[[str], bool]) -> None:
    """Write the wheel again without the files whose names are `left_out`."""
    smaller = wheel.with_suffix(".smaller")
    with zipfile.ZipFile(wheel) as source, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            if left_out(name):
                continue
            content = source.read(name)
            if name.endswith(".dist-info/RECORD"):
                lines = content.decode().splitlines(keepends=True)
                content = "".join(line for line in lines if not left_out(line.split(",")[0])).encode()
            target.writestr(name, content)
    smaller.replace(wheel)


def _other_library(name: str, kept: str) -> bool:
    """Tell whether it is bitsandbytes' library for another version of CUDA: nine tenths of its wheel."""
    base = name.rsplit("/", 1)[-1]
    return base.startswith(("libbitsandbytes_cuda", "libbitsandbytes_rocm")) and base != kept


def _other_service(name: str) -> bool:
    """Tell whether it describes a service of AWS that is not S3, of which nothing here is called, either."""
    parts = name.split("/")
    return parts[:2] == ["botocore", "data"] and len(parts) > 3 and parts[2] not in _SERVICES


def install(wheels: Path, site: Path) -> tuple[Path, ...]:
    """Unpack the wheels into `site`; return the folders that have to come first, our own code's among them."""
    found = sorted(wheels.glob("*.whl"))
    if not found:
        raise SystemExit(f"{wheels} has no wheels: make gpu-wheels")
    for wheel in found:
        # All that an installer would do beside: none of them has data of its own, and the machine may have no pip.
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
    for name, project in _OWN.items():
        # The trainer asks for its own version, as of an installed package.
        text = tomllib.loads((ROOT / project / "pyproject.toml").read_text())["project"]
        about = site / f"{name}-{text['version']}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {text['name']}\nVersion: {text['version']}\n")
    return (site, *(ROOT / project / "src" for project in _OWN.values()))


def main() -> None:
    """Collect, and say how much it is."""
    parser = argparse.ArgumentParser(prog="python -m gpu.carried", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--python", default="3.12", help="the machine's version of Python")
    parser.add_argument("--cuda", default="130", help="the version of CUDA that the machine's torch was built with")
    options = parser.parse_args()
    size = collect(options.folder, options.python, options.cuda)
    print(f"{options.folder}: {size / 2**20:.1f} MiB")
    if size > _LIMIT:
        raise SystemExit(f"more than {_LIMIT / 2**20:.0f} MiB: too much for one call of a machine that is lent")


if __name__ == "__main__":
    main()
