"""Every command that the docs show is one: a test runs it, it is checked here, or its block says what it needs.

Before a fenced block may stand a comment: `<!-- run by: FILE::TEST -->` names the test that runs it,
`<!-- needs: EKS -->` says why none can; its kubectl, helm and make are checked all the same.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Final

import pytest

from tunery_common.errors import TuneryError
from tunery_trainer.commands import parse

from kit.docs import kubectl_words
from kit.shown import PAGES, ROOT, SHELLS, SUBSTITUTED, Block, Command, blocks, commands, inline
from tools.cluster import binaries

TESTS: Final = ROOT / "tests"
CHART: Final = "charts/tunery"
KUBE_VERSION: Final = "1.34.0"
PYTHONS: Final = {"python", "python3", "tests/.venv/bin/python", ".venv/bin/python"}
_SMALL: Final = (
    "cat cd echo eval export grep base64 openssl date seq sleep tail head ls mkdir rm sort tr cut jq true kill"
)
SMALL: Final = frozenset(_SMALL.split())
"""What every shell has, and what does nothing that could be wrong for Tunery."""
ROUTES: Final = ("/metrics", "/healthz", "/readyz", "/livez", "/v1/models", "/v1/chat/completions", "/v1/completions")
OF_INSTALLS: Final = {
    "--wait",
    "--create-namespace",
    "--reset-then-reuse-values",
    "--take-ownership",
    "--install",
    "--atomic",
}
"""Flags of `helm install` and `upgrade` that `helm template` does without."""
OF_TWO_WORDS: Final = {"get", "repo", "show", "search", "registry", "dependency"}
LOOKS_LIKE_ONE: Final = re.compile(
    r"^(\$ )?(kubectl|helm|make|docker|buildah|git|curl|aws|oc|eksctl|flux|argocd|pip|vllm|eval|python3? -m|export|"
    r"tests/\.venv/\S+|cat >|for \w+ in) |^[A-Z_]+=\S",
    re.MULTILINE,
)


Files = Callable[[str], bool]


class Page:
    """What a reader of one page has."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.text = path.read_text()
        self.blocks = [*blocks(path)]
        shown = [command for block in self.blocks if block.language in SHELLS for command in block.commands()]
        self.written = {name for command in shown for name in command.writes}

    def has(self, name: str) -> bool:
        """Say whether a file is written by an earlier command, or spoken of, in backticks or behind a #."""
        return name in self.written or f"`{name}`" in self.text or bool(re.search(rf"{re.escape(name)} +#", self.text))


@cache
def helm_flags(verb: str) -> set[str]:
    told = subprocess.run(
        [helm(), *verb.split(), "--help"], capture_output=True, text=True, timeout=30, check=False
    ).stdout
    return {f"--{name}" for name in re.findall(r"^ +(?:-\w, )?--([\w-]+)", told, re.MULTILINE)} | {
        f"-{name}" for name in re.findall(r"^ +-(\w), --", told, re.MULTILINE)
    }


@cache
def helm() -> str:
    return str(binaries.kubernetes() / "helm")


def helm_problems(command: Command, files: Files) -> Iterator[str]:
    """Flags by helm's own help; what is said of our chart is rendered, so that its schema judges the values."""
    verb, *rest = command.words[1:]
    if verb in OF_TWO_WORDS and rest:
        verb = f"{verb} {rest.pop(0)}"
    flags = [word.partition("=")[0] for word in rest if word.startswith("-")]
    unknown = [flag for flag in flags if flag not in helm_flags(verb)]
    if unknown:
        yield f"helm {verb} has no flag {unknown[0]}"
    if unknown or CHART not in rest or verb not in ("install", "upgrade", "template"):
        return
    arguments: list[str] = []
    while rest:
        word = rest.pop(0)
        if word in ("-f", "--values"):
            if not (ROOT / rest[0]).exists():
                if not files(rest[0]):
                    yield f"{rest[0]} is no file of the repository, and the page does not say where it comes from"
                rest.pop(0)
                continue
        elif word in OF_INSTALLS:
            continue
        elif word in ("--timeout", "--kube-version"):
            rest.pop(0)
            continue
        arguments.append(word.replace("…", "x").replace("SUBSTITUTED", "x"))
    done = subprocess.run(
        [helm(), "template", *arguments, "--kube-version", KUBE_VERSION],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if done.returncode:
        yield f"helm template refuses it: {done.stderr.strip()}"


def make_problems(command: Command) -> Iterator[str]:
    makefile = (ROOT / "Makefile").read_text()
    known = "\n".join(
        [makefile, *(path.read_text() for part in ("demo", "kit", "cluster") for path in (TESTS / part).glob("*.py"))]
    )
    for word in command.words[1:]:
        name, equals, _ = word.partition("=")
        if word.startswith("-"):
            continue
        if equals and not re.search(rf"\b{name}\b", known):
            yield f"nothing reads the variable {name} of make"
        if not equals and word != "…" and not re.search(rf"^{re.escape(word)}:", makefile, re.MULTILINE):
            yield f"the Makefile has no target {word}"


def python_problems(command: Command) -> Iterator[str]:
    words = [*command.words[1:]]
    if words[:1] == ["-c"] or words[:1] in (["-"], []):
        try:
            ast.parse(words[1] if words[:1] == ["-c"] else command.stdin)
        except SyntaxError as error:
            yield f"Python does not take it: {error}"
        return
    if words[0] != "-m":
        yield f"nothing checks python {words[0]}"
        return
    module, arguments = words[1], words[2:]
    if module == "tunery_trainer":
        yield from trainer_problems(arguments)
        return
    if module == "pytest":
        folders = [word for word in arguments if "/" in word]
        yield from (f"there is no tests/{word}" for word in folders if not (TESTS / word).exists())
        return
    path = module.replace(".", "/")
    sources = [
        ROOT / f"{top}/{path}"
        for top in ("tests", "crds/src", "operator/src", "trainer-image/src", "trainer-image/server/src")
    ]
    found = [file for source in sources for file in (*source.glob("*.py"), source.with_suffix(".py")) if file.exists()]
    if not found:
        yield f"there is no module {module}"
    told = "\n".join(file.read_text() for file in found)
    for option in [word.strip("[]").partition("=")[0] for word in arguments if word.strip("[").startswith("--")]:
        if f'"{option}"' not in told:
            yield f"{module} has no option {option}"


def trainer_problems(arguments: list[str]) -> Iterator[str]:
    """The trainer's own parser judges; brackets stand around what may be left out, bars between what to choose."""
    words = [word.strip("[]") for word in arguments if word != "…"]
    if not words or "|" in words[0]:
        return
    if len(words) == 1 and words[0] in ("run", "check", "estimate"):
        words.append("manifest.yaml")  # a sentence that speaks of the command
    try:
        parse(words)
    except TuneryError as error:
        yield f"python -m tunery_trainer {words[0]}: {error}"
    except SystemExit:
        pass  # --version


def curl_problems(command: Command) -> Iterator[str]:
    for word in command.words[1:]:
        if re.match(r"(https?://|localhost)", word) and not any(word.endswith(route) for route in ROUTES):
            yield f"neither operator nor server answers at {word}"


def problems(command: Command, files: Files, needs: str = "") -> Iterator[str]:
    """Return what is wrong with one command, as sentences; `files` says whether a reader has a file of a name."""
    program = command.program
    if program == "kubectl":
        yield from kubectl_words.problems(command, files)
    elif program == "helm":
        yield from helm_problems(command, files) if len(command.words) > 1 else ()
    elif program == "make":
        yield from make_problems(command)
    elif program in PYTHONS:
        yield from python_problems(command)
    elif program == "curl" and not needs:
        yield from curl_problems(command)
    elif program not in SMALL and program != SUBSTITUTED and not needs:
        yield (
            f"nothing checks `{program}`: let a test run the block and say so before it, <!-- run by: FILE::TEST -->, "
            "or say what it needs, <!-- needs: … -->"
        )


def of_block(block: Block, page: Page) -> Iterator[str]:
    where = str(page.path.relative_to(ROOT)) if page.path.is_relative_to(ROOT) else page.path.name
    if block.run_by:
        yield from (f"{where}:{block.line}: {told}" for told in runs_it(block.run_by, page.path.name))
    elif block.language in SHELLS:
        for command in block.commands():
            yield from (f"{where}:{command.line}: {told}" for told in problems(command, page.has, block.needs))
    elif not block.language and LOOKS_LIKE_ONE.search(block.text):
        yield f"{where}:{block.line}: this block has commands: begin it with ```sh, or ```console where it shows output"


def runs_it(test: str, page: str) -> Iterator[str]:
    """Return what is wrong with the test that a page says runs a block."""
    file, _, name = test.partition("::")
    path = TESTS / file
    if not path.exists() or not re.search(rf"^(async )?def {name}\(", path.read_text(), re.MULTILINE):
        yield f"there is no test {test}"
    elif page not in path.read_text():
        yield f"{test} does not read {page}"


def of_page(path: Path) -> list[str]:
    page = Page(path)
    found = [told for block in page.blocks for told in of_block(block, page)]
    shown = [] if path.name in ("files.md", "api.md") else [*inline(path)]  # written by `make generate`
    return found + [
        f"{path.relative_to(ROOT)}:{command.line}: {told}"
        for command in shown
        if len(command.words) > 2
        for told in problems(command, lambda name: True)  # a sentence speaks of any file
    ]


@pytest.fixture(scope="module")
def found() -> dict[Path, list[str]]:
    """What is wrong, by page; kubectl and helm are asked side by side."""
    with ThreadPoolExecutor(4) as pool:
        return dict(zip(PAGES, pool.map(of_page, PAGES), strict=True))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_is_run_by_a_test_or_checked_or_says_what_it_needs(
    found: dict[Path, list[str]], path: Path
) -> None:
    assert not found[path], "\n".join(found[path])


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("kubectl get lorajobs -A -o wide", ""),
        ("kubectl -n team-a get lj -w", ""),
        ("kubectl get lorajobz", "there is no resource lorajobz"),
        ("kubectl get lorajobs --watsh", "kubectl get has no flag --watsh"),
        ("kubectl fetch lorajobs", "kubectl has no command fetch"),
        ("kubectl wait lorajob/a --for=condition=Succeeded --timeout=2h", ""),
        ("kubectl wait lorajob/a --for=condition=Done", "LoRAJob has no condition Done"),
        ("kubectl wait lorajob/a --for=jsonpath='{.status.completionTime}'", ""),
        ("kubectl get lorajob a -o jsonpath='{.status.failures}'", "LoRAJob has no field .status.failures"),
        ("""kubectl get lorajob a -o jsonpath='{.status.conditions[?(@.type=="Failed")].reason}'""", ""),
        ("""kubectl get lorajob a -o jsonpath='{.status.conditions[?(@.kind=="Failed")].reason}'""", ".kind"),
        ("kubectl get lj a -o jsonpath='{range .status.conditions[*]}{.type}: {.reason}{\"\\n\"}{end}{.kind}'", ""),
        ("kubectl get lj a -o jsonpath='{range .status.conditions[*]}{.kind}{end}'", ".status.conditions[*].kind"),
        ("kubectl get lorajobs -o custom-columns=A:.metadata.name,B:.status.fase", ".status.fase"),
        ("kubectl get lorajobs --field-selector status.phase=Trains", "LoRAJob has no phase Trains"),
        ("kubectl get lorajobs --field-selector spec.method=LoRA", "cannot be selected by spec.method"),
        ("""kubectl patch lorajob a --type=merge -p '{"spec":{"suspend":true}}'""", ""),
        ("""kubectl patch lorajob a --type=merge -p '{"spec":{"pause":true}}'""", "no field .spec.pause"),
        ("""kubectl patch lorajob a -p '{"spec":{"suspend":true}}'""", "--type=merge"),
        ("kubectl annotate lorajob a tunery.dev/again=1", "tunery.dev/again"),
        ("kubectl logs -l tunery.dev/owner=a,tunery.dev/role=trainer", "no pod has the role trainer"),
        ("kubectl explain lorajob.spec.trainings", "no field spec.trainings"),
        ("kubectl apply -f nowhere.yaml", "nowhere.yaml is no file"),
        ("kubectl apply -f docs/examples/lora.yaml", ""),
        ("echo $(kubectl get nonsense)", "there is no resource nonsense"),
        ("A=$(kubectl get lorajob a -o name) && kubectl delete $A # that's it", ""),
        ("helm install tunery charts/tunery --set operator.replica=1", "replica"),
        ("helm install tunery charts/tunery --wait --set operator.replicas=1", ""),
        ("helm upgrade tunery charts/tunery --reuse", "helm upgrade has no flag --reuse"),
        ("make demo CLUSTER=existing", ""),
        ("make demos", "no target demos"),
        ("make demo CLOSTER=existing", "CLOSTER"),
        ("python -m tunery_trainer check a.jsonl --modl b", "--modl is no option"),
        ("python -m tunery_trainer estimate a.yaml [--model FOLDER]", ""),
        ("python -m tools.demo.questions", "no module tools.demo.questions"),
        ("python -m pytest unit/nowhere -q", "no tests/unit/nowhere"),
        ("curl -s localhost:8080/statistics", "neither operator nor server"),
        ("oc new-project team-a", "nothing checks `oc`"),
        ("cat > a.yaml <<YAML\nkubectl: none\nYAML\nkubectl apply -f docs/examples/no.yaml", "no.yaml is no file"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_command_is_told(script: str, said: str) -> None:
    told = [told for command in commands(script, 1) for told in problems(command, lambda name: False)]
    assert said in "\n".join(told)
    assert bool(told) == bool(said)


def test_a_block_is_told_with_its_page_and_line_and_a_comment_says_who_runs_it_or_what_it_needs(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    oc = "```sh\noc new-project a\n```\n"
    page.write_text(
        f"# A page\n\n{oc}\n<!-- needs: OpenShift -->\n\n{oc}\n<!-- needs: OpenShift -->\n"
        "```console\n$ kubectl gets pods\nkubectl prints this\n```\n\n```\nkubectl get pods\n```\n\n"
        "<!-- run by: integration/repository/test_docs.py::test_nothing -->\n"
        f"{oc}\n<!-- run by: integration/repository/test_docs.py::test_every_make_target_exists -->\n{oc}"
    )
    shown = Page(page)
    told = [told for block in shown.blocks for told in of_block(block, shown)]
    assert [line.split(" ")[0] for line in told] == [f"page.md:{line}:" for line in (4, 15, 19, 24, 29)]
    for line, said in zip(
        told, ("<!-- needs", "no command gets", "```sh", "no test integration", "does not read page.md"), strict=True
    ):
        assert said in line
