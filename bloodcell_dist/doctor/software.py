"""Python and the packages, against what this distribution asks for."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shlex
import sys
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from bloodcell_dist.doctor.facts import Facts
from bloodcell_dist.doctor.findings import Finding, error, ok, warning
from bloodcell_dist.installed import installed_version

DISTRIBUTION = "bloodcell_dist"
_TOLD = ("tensorflow", "keras", "keras-cv", "numpy")


class Package(Facts):
    """One requirement: `required` as in `>=3.15,<3.16`, and the version that is installed, None for none."""

    name: str
    required: str
    installed: str | None


class Software(Facts):
    """Python, the versions of it that are wanted, and the required packages; none where nothing is known of them.

    `to_compile` is the folder of packages without bytecode, where Python may not write it either.
    """

    python: str
    python_required: str = ""
    packages: tuple[Package, ...] = ()
    to_compile: str | None = None


def look_at_software() -> Software:
    """What the metadata of this distribution require, and what is installed."""
    alone = Software(python=platform.python_version(), to_compile=lacks_bytecode())
    try:
        found = importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return alone
    wanted = map(Requirement, found.requires or ())
    packages = [package(each) for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    required = str(found.metadata["Requires-Python"] or "")
    return alone.model_copy(update={"python_required": required, "packages": tuple(packages)})


def lacks_bytecode(package: str = "tensorflow") -> str | None:
    """The folder that a package lies in, if every process compiles it anew: uv leaves it so if not told."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None or Path(importlib.util.cache_from_source(found.origin)).exists():
        return None
    writes = not sys.dont_write_bytecode and os.access(Path(found.origin).parent, os.W_OK)
    return None if writes else str(Path(found.origin).parents[1])


def look_at_extra(name: str) -> Package:
    """A package that only an extra asks for."""
    try:
        wanted = map(Requirement, importlib.metadata.requires(DISTRIBUTION) or ())
    except importlib.metadata.PackageNotFoundError:
        wanted = map(Requirement, ())
    return package(next((each for each in wanted if each.name == name), Requirement(name)))


def package(requirement: Requirement) -> Package:
    """The requirement and what is installed of it."""
    return Package(
        name=requirement.name, required=str(requirement.specifier), installed=installed_version(requirement.name)
    )


def is_right(package: Package) -> bool:
    """Whether it is installed, in a version that is wanted."""
    return package.installed is not None and SpecifierSet(package.required).contains(package.installed, True)


def judge_software(found: Software) -> list[Finding]:
    """A line about Python, one about the packages, one if they are not compiled."""
    slow = [_judge_bytecode(found.to_compile)] if found.to_compile else []
    if not found.packages:
        text = f"{DISTRIBUTION} is not installed as a distribution, so the versions of its packages are not checked"
        return [ok("python", found.python), warning("packages", text, "pip install -e . in the checkout"), *slow]
    return [_judge_python(found), _judge_packages(found.packages), *slow]


def _judge_python(found: Software) -> Finding:
    if SpecifierSet(found.python_required).contains(found.python, True):
        return ok("python", found.python)
    text = f"{found.python}, wanted {found.python_required}"
    return error("python", text, "a new environment: make venv PYTHON=python3.11, or load such a module before")


def _judge_bytecode(folder: str) -> Finding:
    text = "the packages lie there without Python's bytecode, so that every process compiles them, for 5 to 10 s"
    return warning("bytecode", text, shlex.join(["python", "-m", "compileall", "-q", folder]) + ", once, as its owner")


def _judge_packages(packages: tuple[Package, ...]) -> Finding:
    wrong = [each for each in packages if not is_right(each)]
    if wrong:
        text = ", ".join(f"{each.name} {each.installed or 'is missing'}, wanted {each.required}" for each in wrong)
        return error("packages", text, shlex.join(["pip", "install", *(each.name + each.required for each in wrong)]))
    versions = {each.name: each.installed for each in packages}
    told = ", ".join(f"{name} {versions[name]}" for name in _TOLD if name in versions)
    return ok("packages", f"{len(packages)} as required: {told}" if told else f"{len(packages)} as required")
