"""docs/install.md names the chart's values, each that there is and no other, and installs the images of make push."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import yaml

from kit.chart.rendering import CHART, KUBE_VERSION, Helm, Rendered
from kit.environment import NEEDED
from tools.cluster.images import IMAGES, chart_values

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
DOCS = CHART.parents[1] / "docs"
PAGE = (DOCS / "install.md").read_text()
README = (CHART.parents[1] / "README.md").read_text()
REGISTRY = "registry.example.com/tunery"


def documented() -> set[str]:
    """Return the names in the first column of the table of values."""
    (table,) = re.findall(r"^\| value \| meaning \|\n(.*?)\n\n", PAGE, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    return {name.removesuffix(".*") for row in rows for name in re.findall(r"`([^`]+)`", row)}


def value(path: str) -> Any:
    """Return what values.yaml says at a path; raises KeyError where it has no such name."""
    found: Any = VALUES
    for part in path.split("."):
        found = found[part]
    return found


def test_every_documented_value_is_one() -> None:
    for path in documented():
        value(path)


def names() -> set[str]:
    """Return the values by the names that the page may speak of them: whole, or by their first two parts."""
    return {
        f"{top}.{name}" if name else top
        for top, below in VALUES.items()
        for name in (below if isinstance(below, dict) and below else [""])
    }


def test_every_value_is_documented() -> None:
    known = documented()
    told = known | {name for name in names() if name.partition(".")[0] in known}
    assert names() - told == set()


def blocks_of_values(name: str) -> list[str]:
    """Return the blocks of a page that are values, and no objects or parts of them."""
    found = re.findall(r"^```yaml\n(.*?)^```", (DOCS / name).read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in found if "apiVersion:" not in block and "  scheduling:" not in block]


@pytest.mark.parametrize(
    "block", [block for name in ("install.md", "platforms.md") for block in blocks_of_values(name)]
)
def test_every_block_of_values_renders(helm: Helm, block: str) -> None:
    values = yaml.safe_load(block)
    assert set(values) <= set(VALUES)
    assert helm.render(values=values).one("Deployment")


def installing(page: str) -> list[str]:
    """Return the words of a page's `helm install`."""
    (command,) = re.findall(r"^helm install (?:.*\\\n)*.*$", page, re.MULTILINE)
    return shlex.split(command.replace("\\\n", " "))


def images_of(rendered: Rendered) -> set[str]:
    """Return the images of Tunery that an installation runs."""
    settings = rendered.settings()
    return {rendered.pod()["containers"][0]["image"], settings.trainer.image, settings.serving.server.image}


@pytest.mark.parametrize("page", [README, PAGE], ids=["README", "install"])
def test_a_documented_install_takes_the_images_of_make_push(helm: Helm, page: str) -> None:
    _, _, name, chart, *flags = [word for word in installing(page) if word != "--wait"]
    text = helm.run("template", name, str(CHART.parents[1] / chart), "--kube-version", KUBE_VERSION, *flags)
    assert images_of(Rendered.parse(text)) == {f"{REGISTRY}/{image.repository}:TAG" for image in IMAGES}


def test_the_file_of_make_push_pins_each_image_by_its_digest(helm: Helm) -> None:
    pushed = {image.name: f"{REGISTRY}/{image.repository}@sha256:{'a' * 64}" for image in IMAGES}
    assert images_of(helm.render(values=chart_values(pushed))) == set(pushed.values())


def test_install_names_each_image_of_make_push_and_what_it_prints() -> None:
    section = PAGE.split("\n## 1. Images\n", 1)[1].split("\n## ", 1)[0]
    assert [image.name for image in IMAGES if f"`{image.repository}`" not in section] == []
    assert [image.name for image in IMAGES if f"`{image.folder}/Dockerfile`" not in section] == []
    assert [name for name in NEEDED if f"`{name}`" not in PAGE] == []
