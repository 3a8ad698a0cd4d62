"""What an installed package holds, and that each fact about it stands in one file only."""

import configparser
import email.message
import email.parser
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import resources
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import bloodcell_dist

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bloodcell_dist"
BUILT_FROM = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "bloodcell_dist", "configs", "slurm")
# What `pip wheel --no-build-isolation` calls; an environment made by uv has no pip.
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what packages are built from, because building leaves folders behind."""
    source = tmp_path_factory.mktemp("source")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
        else:
            shutil.copy(ROOT / name, source)
    (source / "slurm" / "site.env").write_text("SBATCH_ACCOUNT=ours\n", encoding="utf-8")
    return source


def build(kind: str, source: Path, out: Path) -> Path:
    """kind: wheel or sdist. Without a network."""
    command = [sys.executable, "-c", BUILD.format(kind), str(out)]
    run = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", source, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.parser.BytesParser().parsebytes(archive.read(name))


@pytest.fixture(scope="module")
def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg", encoding="utf-8")
    return parser


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def files_below(folder: Path, pattern: str) -> set[str]:
    """Their paths as the wheel names them."""
    return {path.relative_to(ROOT).as_posix() for path in folder.rglob(pattern)}


def test_wheel_holds_every_module(contents: set[str]) -> None:
    assert files_below(PACKAGE, "*.py") <= contents  # a folder without __init__.py would be left out


def test_wheel_holds_the_configurations(contents: set[str]) -> None:
    configs = files_below(ROOT / "configs", "*.yaml")
    assert "configs/demo.yaml" in configs
    assert {f"bloodcell_dist/{name}" for name in configs} <= contents


def slurm_files() -> set[str]:
    """Those of the batch scripts that travel: not what a site has set."""
    names = {path for path in files_below(ROOT / "slurm", "*") if (ROOT / path).is_file()}
    assert {"slurm/lib/job.sh", "slurm/train_convnext.sh"} <= names
    return {f"bloodcell_dist/{name}" for name in names - {"slurm/site.env"}}


def test_wheel_holds_the_batch_scripts(wheel: Path, contents: set[str]) -> None:
    assert {name for name in contents if name.startswith("bloodcell_dist/slurm/")} == slurm_files()
    with zipfile.ZipFile(wheel) as archive:
        modes = {name: archive.getinfo(name).external_attr >> 16 & 0o777 for name in slurm_files()}
    assert modes == {name: (PACKAGE.parent / name).stat().st_mode & 0o777 for name in slurm_files()}


def test_sdist_holds_configurations_and_batch_scripts(sdist: Path) -> None:
    """From it a wheel is built too; there they are files, not links out of it."""
    top = sdist.name.removesuffix(".tar.gz")
    with tarfile.open(sdist) as archive:
        files = {member.name.removeprefix(f"{top}/") for member in archive.getmembers() if member.isfile()}
    configs = {f"bloodcell_dist/{name}" for name in files_below(ROOT / "configs", "*.yaml")}
    assert {name for name in files if name.startswith("bloodcell_dist/slurm/")} == slurm_files()
    assert configs | files_below(PACKAGE, "*.py") <= files


def test_wheel_holds_templates_and_type_marker(contents: set[str]) -> None:
    templates = files_below(PACKAGE / "evaluation", "*.j2")
    assert templates
    assert templates | {"bloodcell_dist/py.typed"} <= contents


def test_wheel_holds_nothing_else(contents: set[str]) -> None:
    tops = {name.split("/")[0] for name in contents}
    assert tops == {"bloodcell_dist", f"bloodcell_dist-{bloodcell_dist.__version__}.dist-info"}


def test_wheel_metadata(metadata: email.message.Message) -> None:
    assert metadata["Name"] == "bloodcell-dist"
    assert metadata["Version"] == bloodcell_dist.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata["Requires-Python"].split(",")) == {">=3.11", "<3.13"}
    assert set(metadata.get_all("Provides-Extra", [])) == {"gpu", "horovod", "test"}


def test_wheel_installs_the_command(wheel: Path, contents: set[str]) -> None:
    (name,) = [name for name in contents if name.endswith("entry_points.txt")]
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read(name).decode()
    assert text.split("\n")[:2] == ["[console_scripts]", "bloodcell-dist = bloodcell_dist.cli:main"]


def test_configurations_are_found_through_the_package() -> None:
    assert (resources.files("bloodcell_dist") / "configs" / "demo.yaml").is_file()


def test_batch_scripts_are_found_through_the_package() -> None:
    assert (resources.files("bloodcell_dist") / "slurm" / "lib" / "job.sh").is_file()


def test_nothing_stands_in_both_files(setup_cfg: configparser.ConfigParser, pyproject: dict) -> None:
    sections = {section.split(".")[0] for section in setup_cfg.sections()}
    assert sections == {"metadata", "options"}, "tools' settings belong in pyproject.toml"
    assert set(pyproject) == {"build-system", "tool"}, "metadata belong in setup.cfg"
    assert "setuptools" not in pyproject["tool"]


def test_licence_and_citation_name_this_version() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert f"version: {bloodcell_dist.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## [{bloodcell_dist.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_constraints_suit_the_requirements(metadata: email.message.Message) -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    for requirement in map(Requirement, metadata.get_all("Requires-Dist", [])):
        name = canonicalize_name(requirement.name)
        assert name in versions, f"{name} is not pinned: run `make lock`"
        assert requirement.specifier.contains(versions[name]), f"{name} {versions[name]}: run `make lock`"
