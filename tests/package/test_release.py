"""What is published beside the wheel itself: the README of an index, workflows, the checklist."""

import importlib.util
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import signconv
from tests.support import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
in_the_repository = pytest.mark.skipif(not WORKFLOWS, reason="an sdist has no workflows")


def metadata() -> Any:
    path = ROOT / "tools" / "release" / "metadata.py"
    found = importlib.util.spec_from_file_location("release_metadata", path)
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("[a](docs/b.md#c)", "[a](URL/blob/v1.2/docs/b.md#c)"),
        ("![loss](docs/a.png)", "![loss](URL/raw/v1.2/docs/a.png)"),
        ("[a](https://b.org/c) [d](#e)", "[a](https://b.org/c) [d](#e)"),
        ("f[0](x y)", "f[0](x y)"),
    ],
)
def test_links_of_the_readme_are_absolute_on_an_index(text: str, made: str) -> None:
    m = metadata()
    assert m.absolute(text, "1.2") == made.replace("URL", m.REPOSITORY)
    assert PROJECT["urls"]["Repository"] == m.REPOSITORY


def test_no_link_of_the_readme_is_left_relative() -> None:
    text = metadata().absolute((ROOT / "README.md").read_text("utf-8"), signconv.__version__)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert len(targets) > 20
    assert [x for x in targets if not x.startswith(("https://", "#"))] == []


@in_the_repository
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.name)
def test_a_workflow_says_that_it_has_not_run_and_names_what_there_is(path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    text = path.read_text("utf-8")
    assert text.startswith("# Not run here")
    jobs = yaml.safe_load(text)["jobs"]
    steps = [s for job in jobs.values() for s in job["steps"]]
    assert all(("uses" in s) != ("run" in s) for s in steps)
    assert all(re.search(r"@(v\d+|release/v\d+)$", s["uses"]) for s in steps if "uses" in s)
    commands = " ".join(s["run"] for s in steps if "run" in s)
    for name in re.findall(r"(?<!\S)(?:tests/\S+|\.ci/\S+)", commands):
        assert (ROOT / name).exists(), name
    for extra in re.findall(r"\.\[([\w,]+)\]", commands):
        assert set(extra.split(",")) <= PROJECT["optional-dependencies"].keys()
    supported = {x.rpartition(" ")[2] for x in PROJECT["classifiers"] if "Python :: 3." in x}
    used = set(re.findall(r'"(3\.\d+)"', text))
    assert used and used <= supported


@in_the_repository
def test_all_three_systems_are_tested_and_installed_on() -> None:
    text = "\n".join(p.read_text("utf-8") for p in WORKFLOWS)
    for system in ("ubuntu-latest", "macos-latest", "windows-latest"):
        assert text.count(system) >= 2


def test_the_changelog_has_this_version_or_what_comes() -> None:
    headings = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert headings[0] in ("Unreleased", signconv.__version__)
    assert signconv.__version__ in headings
