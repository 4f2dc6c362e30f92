"""What a user installs: the wheel, the editable checkout, and the bare checkout on PYTHONPATH.

Every program here runs in a subprocess, outside the checkout, in a virtual environment of its own
that borrows the dependencies of the running interpreter but not its signconv: the borrowed
site-packages is a plain path entry, and .pth files found through one (an editable install is a
.pth file) are not read.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


# Variables that would let the checkout, or a mode of the test run, leak into the subprocess.
LEAKS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "TRITON_INTERPRET")

# One step from zero state moves every coordinate by lr, since m/sqrt(v) is then exactly +-1;
# decoupled weight decay adds at most a few per cent of lr.
ONE_STEP = """
import json, sys
import torch
import signconv
from signconv.generated import adamw_stosign

torch.manual_seed(0)
weight = torch.nn.Parameter(torch.randn(4, 32))
before = weight.detach().clone()
optimizer = adamw_stosign.AdamWStoSign([weight], lr=1e-3, backend="reference")
weight.grad = torch.randn(4, 32)
optimizer.step()
moved = (weight.detach() - before).abs()
print(json.dumps({
    "signconv": signconv.__file__,
    "generated": adamw_stosign.__file__,
    "least": moved.min().item(),
    "most": moved.max().item(),
}))
"""


@dataclass(frozen=True)
class Place:
    """An interpreter, the folder its programs run in, and what its environment adds."""

    python: Path
    cwd: Path
    extra_env: dict[str, str] = field(default_factory=dict)

    def run(self, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        env = {name: value for name, value in os.environ.items() if name not in LEAKS}
        env |= {"XDG_CACHE_HOME": str(self.cwd / "cache"), "NO_COLOR": "1", "COLUMNS": "120"}
        env |= self.extra_env
        done = subprocess.run(
            [str(self.python), *args],
            cwd=self.cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if check and done.returncode:
            pytest.fail(
                f"{' '.join(args)[:200]} exited {done.returncode}\n{done.stdout}\n{done.stderr}"
            )
        return done

    def pip_install(self, *args: str) -> None:
        """With the running interpreter's pip; --ignore-installed keeps it off outer packages."""
        offline = ("--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed")
        quiet = ("--quiet", "--disable-pip-version-check")
        Place(Path(sys.executable), self.cwd).run(
            "-m", "pip", "--python", str(self.python), "install", *quiet, *offline, *args
        )

    @property
    def script(self) -> Path:
        return self.python.with_name("signconv" + self.python.suffix)


def make_place(folder: Path) -> Place:
    """A new virtual environment that sees the running interpreter's dependencies."""
    home = folder / "venv"
    venv.create(home, with_pip=False, symlinks=os.name != "nt")
    python = home / (r"Scripts\python.exe" if os.name == "nt" else "bin/python")
    cwd = folder / "elsewhere"
    cwd.mkdir()
    place = Place(python, cwd)
    site = place.run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").stdout.strip()
    outer = [p for p in sys.path if Path(p).name in ("site-packages", "dist-packages")]
    # Appended to sys.path, so what is installed here comes first.
    Path(site, "outer_dependencies.pth").write_text("\n".join(outer) + "\n")
    return place


@pytest.fixture(scope="session")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Dependencies only."""
    return make_place(tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="session")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The sdist, and the wheel built from that sdist, by the installed hatchling: no network."""
    out = tmp_path_factory.mktemp("dist")
    place = Place(Path(sys.executable), out)
    place.run("-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT))
    (wheel,) = out.glob("*.whl")
    (sdist,) = out.glob("*.tar.gz")
    return {"wheel": wheel, "sdist": sdist}


@pytest.fixture(scope="session")
def from_wheel(distributions: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = make_place(tmp_path_factory.mktemp("from_wheel"))
    place.pip_install(str(distributions["wheel"]))
    return place


@pytest.fixture(scope="session")
def from_editable(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = make_place(tmp_path_factory.mktemp("from_editable"))
    # The build backend is one of the borrowed packages; --no-build-isolation lets pip use it.
    place.pip_install("--editable", str(ROOT))
    return place


@pytest.fixture(scope="session")
def from_checkout(bare: Place) -> Place:
    return Place(bare.python, bare.cwd, {"PYTHONPATH": str(ROOT)})


def files_under(folder: str, pattern: str) -> set[str]:
    names = {p.relative_to(ROOT / folder).as_posix() for p in (ROOT / folder).rglob(pattern)}
    assert names, f"{folder}/ holds no {pattern}"
    return names


def take_one_step(place: Place) -> tuple[Path, Path]:
    """One reference step; the files that signconv and the optimizer were imported from."""
    seen = json.loads(place.run("-c", ONE_STEP).stdout)
    assert 0.5e-3 < seen["least"] <= seen["most"] < 2e-3, seen
    return Path(seen["signconv"]).resolve(), Path(seen["generated"]).resolve()


# ---- what is in the archives ----


def test_wheel_holds_package_templates_and_generated(distributions: dict[str, Path]) -> None:
    names = set(zipfile.ZipFile(distributions["wheel"]).namelist())
    assert {f"signconv/_templates/{n}" for n in files_under("templates", "*.j2")} <= names
    assert {f"signconv/_generated/{n}" for n in files_under("generated", "*.py")} <= names
    assert {f"signconv/{n}" for n in files_under("signconv", "*.py")} <= names
    assert {"signconv/py.typed", "signconv/runtime/legacy_0_1.txt"} <= names
    assert any(n.endswith(".dist-info/licenses/LICENSE") for n in names)
    version = distributions["wheel"].name.split("-")[1]
    assert {n.split("/")[0] for n in names} == {"signconv", f"signconv-{version}.dist-info"}
    assert not [n for n in names if "__pycache__" in n]


def test_sdist_can_be_tested_and_holds_nothing_else(distributions: dict[str, Path]) -> None:
    with tarfile.open(distributions["sdist"]) as archive:
        names = {n.partition("/")[2] for n in archive.getnames()}
    wanted = {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "Makefile",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
    }
    assert wanted | {"tests/package/test_packaging.py", "tools/mutation/mutants.py"} <= names
    records = [n for n in names if n.startswith(("docs/raw", "docs/results/")) and n[-4:] != ".png"]
    assert not records and not [n for n in names if n.startswith("docs/raw/")]
    tops = {n.split("/")[0] for n in names}
    folders = {"signconv", "templates", "generated", "tests", "tools", "docs", "examples"}
    assert tops <= wanted | folders | {"PKG-INFO", ".gitignore"}


# ---- from the wheel ----


def test_wheel_is_what_gets_imported(from_wheel: Place) -> None:
    package, generated = take_one_step(from_wheel)
    home = from_wheel.python.parent.parent.resolve()
    assert package.is_relative_to(home)
    assert generated.is_relative_to(home)
    assert generated.parent.name == "_generated"


def test_wheel_lists_what_there_is(from_wheel: Place) -> None:
    listed = from_wheel.run("-m", "signconv", "list").stdout
    assert "adamw" in listed
    assert "stosign" in listed


def test_wheel_builds_the_committed_file(from_wheel: Place, tmp_path: Path) -> None:
    """By the installed script: templates come from inside the wheel, bytes are the checkout's."""
    build = ("build", "adamw", "--convert", "stosign", "--out", str(tmp_path))
    Place(from_wheel.script, from_wheel.cwd).run(*build)
    built = (tmp_path / "adamw_stosign.py").read_bytes()
    assert built == (ROOT / "generated" / "adamw_stosign.py").read_bytes()


def test_the_checkout_makes_the_wheel_of_its_sdist(
    distributions: dict[str, Path], tmp_path: Path
) -> None:
    """Byte for byte, the dates in the archive apart."""
    place = Place(Path(sys.executable), tmp_path)
    place.run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT))
    (direct,) = tmp_path.glob("*.whl")
    assert direct.name == distributions["wheel"].name and direct.name.endswith("-py3-none-any.whl")
    one, other = (zipfile.ZipFile(p) for p in (direct, distributions["wheel"]))
    assert sorted(one.namelist()) == sorted(other.namelist())
    assert [n for n in one.namelist() if one.read(n) != other.read(n)] == []


WITHOUT_TRITON = """
import signconv, torch
weight = torch.nn.Parameter(torch.ones(4, 32))
optimizer = signconv.compile("adamw", convert="stosign")([weight], lr=1e-3)
weight.grad = torch.randn(4, 32)
optimizer.step()
print((weight.detach() - 1).abs().max().item() < 2e-3 and (weight != 1).all().item())
"""


def test_wheel_works_where_triton_is_absent(from_wheel: Place, tmp_path: Path) -> None:
    """As on macOS and Windows: an import of it fails, in the commands too."""
    (tmp_path / "triton.py").write_text('raise ModuleNotFoundError("no triton", name="triton")\n')
    env = {"PYTHONPATH": str(tmp_path), "SIGNCONV_CACHE": str(tmp_path / "cache")}
    place = Place(from_wheel.python, from_wheel.cwd, env)
    assert place.run("-c", WITHOUT_TRITON).stdout == "True\n"
    script = Place(from_wheel.script, from_wheel.cwd, env)
    assert re.search(r"│ Triton +│ no ", script.run("doctor").stdout)
    script.run("new", "my_adam", "--out", str(tmp_path))  # it builds what it writes
    assert "class MyAdam(Optimizer):" in (tmp_path / "my_adam.py").read_text("utf-8")


# ---- from a checkout ----


@pytest.mark.parametrize("form", ["from_editable", "from_checkout"])
def test_checkout_imports_its_root_folder(form: str, request: pytest.FixtureRequest) -> None:
    package, generated = take_one_step(request.getfixturevalue(form))
    assert package == ROOT / "signconv" / "__init__.py"
    assert generated == ROOT / "generated" / "adamw_stosign.py"


def test_editable_install_copies_nothing(from_editable: Place) -> None:
    """A copy of templates/ or generated/ in site-packages would go stale."""
    home = from_editable.python.parent.parent
    assert not list(home.rglob("_templates"))
    assert not list(home.rglob("_generated"))
    listed = Place(from_editable.script, from_editable.cwd).run("list").stdout
    assert "adamw" in listed


@pytest.mark.parametrize("strays", [(), ("pyproject.toml",)])
def test_stranger_named_generated_is_not_taken_for_ours(
    bare: Place, tmp_path: Path, strays: tuple[str, ...]
) -> None:
    """site-packages may hold a top-level folder "generated" of some other distribution."""
    own = tmp_path / "signconv" / "generated" / "__init__.py"
    own.parent.mkdir(parents=True)
    (tmp_path / "signconv" / "__init__.py").touch()
    own.write_bytes((ROOT / "signconv" / "generated" / "__init__.py").read_bytes())
    bundled, stranger = tmp_path / "signconv" / "_generated", tmp_path / "generated"
    for folder in (bundled, stranger):
        folder.mkdir()
        (folder / "some_optimizer.py").touch()
    for stray in strays:
        (tmp_path / stray).touch()
    place = Place(bare.python, bare.cwd, {"PYTHONPATH": str(tmp_path)})
    probe = "import signconv.generated.some_optimizer as m; print(m.__file__)"
    assert Path(place.run("-c", probe).stdout.strip()) == bundled / "some_optimizer.py"


# ---- imports and requirements ----


@pytest.mark.parametrize(
    "module", ["signconv", "signconv.generated.adamw_stosign", "signconv.runtime"]
)
def test_import_loads_no_compiler(module: str, from_checkout: Place) -> None:
    """Neither SymPy nor Jinja2, beyond what torch itself may load."""
    probe = f"""
import importlib, json, sys
import torch
before = set(sys.modules)
importlib.import_module({module!r})
print(json.dumps(sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})))
"""
    loaded = set(json.loads(from_checkout.run("-c", probe).stdout))
    assert "signconv" in loaded
    assert not loaded & {"sympy", "jinja2", "typer", "rich"}


#: Extras that `make setup` does not install.
LARGE = ("integrations", "frameworks", "docs")


def declared_requirements() -> list[Any]:
    """Those of the extras that `make setup` leaves out are looked at where they are installed."""
    extras = PROJECT["optional-dependencies"]
    others = [line for name, extra in extras.items() if name not in LARGE for line in extra]
    plain = [Requirement(line) for line in dict.fromkeys([*PROJECT["dependencies"], *others])]
    apart = pytest.mark.integration
    return plain + [pytest.param(Requirement(x), marks=apart) for n in LARGE for x in extras[n]]


@pytest.mark.parametrize("requirement", declared_requirements(), ids=str)
def test_lower_bound_is_not_above_what_is_installed(requirement: Requirement) -> None:
    if requirement.marker is not None and not requirement.marker.evaluate():
        pytest.skip(f"not required here: {requirement.marker}")
    assert [s.operator for s in requirement.specifier] == [">="], "one lower bound, no upper one"
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        for name in LARGE:
            if str(requirement) in PROJECT["optional-dependencies"][name]:
                pytest.skip(f"the extra {name} is not installed")
        raise
    assert requirement.specifier.contains(installed, prereleases=True), installed


def test_python_bound_admits_this_interpreter() -> None:
    assert Requirement(f"python{PROJECT['requires-python']}").specifier.contains(
        ".".join(map(str, sys.version_info[:3])), prereleases=True
    )
