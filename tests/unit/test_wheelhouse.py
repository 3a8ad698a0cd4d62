"""What scripts/make_wheelhouse.sh plans, makes and refuses, and what its install.sh does with a tiny wheelhouse."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

import bloodcell_dist

ROOT = Path(__file__).parents[2]
MAKE = ROOT / "scripts" / "make_wheelhouse.sh"
INSTALL = ROOT / "scripts" / "install_wheelhouse.sh"
TOOLS = [
    "bash",
    "cat",
    "comm",
    "cp",
    "cut",
    "dirname",
    "basename",
    "du",
    "env",
    "find",
    "getconf",
    "grep",
    "head",
    "ln",
]
TOOLS += [
    "ls",
    "mkdir",
    "mktemp",
    "mv",
    "rm",
    "rmdir",
    "sed",
    "sha256sum",
    "sort",
    "tail",
    "tar",
    "touch",
    "tr",
    "uname",
]
TOOLS += ["xargs"]
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
RELEASE = bloodcell_dist.__version__
WHEEL = f"bloodcell_dist-{RELEASE}-py3-none-any.whl"

# A Python whose environments have a pip that touches a file where a wheel or an archive would come.
FAKE_PYTHON = """#!/usr/bin/env bash
case "$*" in
*sysconfig*) echo "${{0%/bin/*}}/site" ;;
-c*) exec '{python}' "$@" ;;
*' venv '*)
    mkdir -p "${{*: -1}}/bin" "${{*: -1}}/site"
    cp "$0" "${{*: -1}}/bin/python"
    ;;
*)
    [[ "$*" != *'{fails}'* ]] || {{ echo "error: {fails} is nowhere" && exit 1; }}
    cp "${{0%/bin/*}}/site/_manylinux.py" '{seen}'
    while [ "$#" -gt 0 ]; do
        case $1 in
        --wheel-dir) mkdir -p "$2" && touch "$2/{wheel}" "$2/numpy-2.0-py3-none-any.whl" ;;
        --dest) touch "$2/horovod-0.28.1.tar.gz" ;;
        esac
        shift
    done
    ;;
esac
"""
FAKE_HOROVOD = """#!/usr/bin/env bash
printf '%s\\n' "$1" "$HOROVOD_SOURCE" "$PIP_NO_INDEX" "${PIP_FIND_LINKS// /SPACE}" "${PYTHONPATH:-}" >"$1.horovod"
exit "${HOROVOD_STATUS:-0}"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A folder with little more than what POSIX has: no Python, no uv, no compiler."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, tool
        (folder / tool).symlink_to(found)
    return folder


def program(folder: Path, name: str, text: str = "#!/bin/sh\n") -> Path:
    file = folder / name
    file.write_text(text)
    file.chmod(0o755)
    return file


def run(script: Path, *arguments: str | Path, path: Path, **variables: str | Path) -> tuple[int, str, str]:
    """(status, out, err), in a working folder of its own and with its own folder for temporary files"""
    work = path.parent / "a working folder"
    temporary = path.parent / "a tmp"
    work.mkdir(exist_ok=True)
    temporary.mkdir(exist_ok=True)
    environment = {"PATH": path, "TMPDIR": temporary, **variables}
    done = subprocess.run(
        [script, *arguments],
        cwd=work,
        env={name: str(value) for name, value in environment.items()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def quoted(path: Path) -> str:
    """As bash's %q prints it."""
    return str(path).replace(" ", "\\ ")


# ---- making


def fake_python(folder: Path, fails: str = "nothing fails") -> Path:
    text = FAKE_PYTHON.format(python=sys.executable, wheel=WHEEL, fails=fails, seen=folder.parent / "manylinux")
    return program(folder, "fake-python", text)


def test_plan(path: Path) -> None:
    status, out, err = run(MAKE, "--dry-run", "--tar", "--python", sys.executable, "my wheels", path=path)
    assert (status, err) == (0, "")
    folder = path.parent / "a working folder" / "my wheels"
    assert f"({VERSION})\nFor: bloodcell-dist {RELEASE}, extras gpu, Horovod 0.28.1; {platform.machine()}, " in out
    assert (
        f"{WHEEL}\\[gpu\\] pip setuptools\\<80 wheel packaging cloudpickle psutil pyyaml cmake\\>=3.13\\,\\<4 " in out
    )
    assert f"--constraint {quoted(ROOT / 'constraints.txt')} --only-binary :all: --no-binary promise " in out
    assert re.search(r"download --no-deps --no-binary horovod --dest .+my\\ wheels horovod==0.28.1 ", out)
    assert out.endswith(f"To be made: {folder}, {folder}.tar\n")
    assert list(folder.parent.iterdir()) == []
    assert list((path.parent / "a tmp").iterdir()) == []


def test_plan_names_what_install_horovod_needs(path: Path) -> None:
    """Both lists have to agree."""
    text = (ROOT / "scripts" / "install_horovod.sh").read_text()
    listed = re.search(r"^needed = \[(.*)\]$", text, re.MULTILINE)
    assert listed
    plan = run(MAKE, "--dry-run", "--python", sys.executable, path=path)[1]
    assert [name for name in re.findall(r'"(\w+)"', listed[1]) if f" {name} " not in plan] == []


def test_plan_without_extras(path: Path) -> None:
    out = run(MAKE, "--dry-run", "--extras", "none", "--python", sys.executable, path=path)[1]
    assert f"For: bloodcell-dist {RELEASE}, Horovod" in out
    assert f"{WHEEL} pip " in out
    assert out.endswith("/bloodcell-wheelhouse\n")


def test_the_first_python_that_fits(path: Path) -> None:
    program(path, "python3.11", "#!/bin/sh\nexit 127\n")  # as pyenv's do, for versions that are not chosen
    program(path, "python3", f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    assert f"Python: {sys.executable} ({VERSION})\n" in run(MAKE, "--dry-run", path=path)[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--wet-run"], "Unknown option --wet-run. Usage: scripts/make_wheelhouse.sh [--extras LIST]"),
        (["a", "b"], "One FOLDER, not two: a, b\n"),
        (["--extras"], "--extras needs a value. Usage: scripts/make_wheelhouse.sh"),
        (["--extras", "gpu,cuda"], "There is no extra cuda; there are: none, gpu, test.\n"),
        (["--extras", "horovod"], "Horovod's source always comes along, and install.sh builds it: no extra for it.\n"),
        (["--glibc", "el8"], "--glibc el8 is no version of the GNU C library; RHEL 8, for one, has 2.28.\n"),
        (["--python", "/no/python"], "No Python 3.11 or 3.12 among: /no/python. Name the cluster's version: --python"),
        ([], "No Python 3.11 or 3.12 among: python3.11 python3.12 python3 python. Name the"),
        (["no/folder"], "/a working folder/no.\n"),
        (["../bin"], "/a working folder/../bin is there already. Remove it, or name another FOLDER.\n"),
    ],
)
def test_make_refuses(path: Path, arguments: list[str], words: str) -> None:
    status, out, err = run(MAKE, *arguments, path=path)
    assert (status, out) == (2, "")
    assert words in err


def test_make_refuses_to_overwrite_an_archive(path: Path) -> None:
    (path.parent / "wheels.tar").touch()
    status, _, err = run(MAKE, "--tar", path.parent / "wheels", path=path)
    assert (status, err) == (2, f"{path.parent}/wheels.tar is there already. Remove it, or name another FOLDER.\n")


def test_make_needs_pip(path: Path) -> None:
    python = program(path, "python3")
    program(path, "python3", f"#!/bin/sh\ncase $2 in *executable*) echo '{python}' ;; *ensurepip*) exit 1 ;; esac\n")
    status, _, err = run(MAKE, "--dry-run", path=path)
    message = f"{python} cannot make an environment with pip. Install python3-venv (Debian, Ubuntu) or uv.\n"
    assert (status, err) == (2, message)
    program(path, "uv")
    assert f"\nuv --quiet venv --seed --python {python} " in run(MAKE, "--dry-run", path=path)[1]


def make(path: Path, *arguments: str | Path, python: Path) -> tuple[int, str, str]:
    wrapped = program(path, "python3", f"#!/bin/sh\ncase $2 in *executable*) echo '{python}' ;; *) exit 1 ;; esac\n")
    return run(MAKE, "--python", wrapped, *arguments, path=path)


def test_made(path: Path) -> None:
    status, out, err = make(path, "--tar", "--glibc", "2.17", "my wheels", python=fake_python(path))
    assert (status, err) == (0, "")
    assert out.endswith("Copy it to the cluster, and there: my wheels/install.sh VENV\n")
    work = path.parent / "a working folder"
    assert sorted(entry.name for entry in work.iterdir()) == ["my wheels", "my wheels.tar"]
    folder = work / "my wheels"
    files = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert files == {
        "SHA256SUMS",
        "constraints.txt",
        "horovod-0.28.1.tar.gz",
        "install.sh",
        "scripts/install_horovod.sh",
        f"wheels/{WHEEL}",
        "wheels/numpy-2.0-py3-none-any.whl",
        "wheelhouse.txt",
    }
    assert (folder / "wheelhouse.txt").read_text().splitlines() == [
        f"release={RELEASE}",
        "extras=gpu",
        f"python={VERSION}",
        f"machine={platform.machine()}",
        "glibc=2.17",
        "horovod=0.28.1",
    ]
    lines = [line.split("  ") for line in (folder / "SHA256SUMS").read_text().splitlines()]
    sums = {name: digest for digest, name in lines}
    assert sums == {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in files - {"SHA256SUMS"}}
    assert os.access(folder / "install.sh", os.X_OK)
    with tarfile.open(work / "my wheels.tar") as archive:
        members = {member.name.removeprefix("my wheels/") for member in archive.getmembers() if member.isfile()}
    assert members == files
    assert list((path.parent / "a tmp").iterdir()) == []


def test_wheels_suit_an_older_c_library(path: Path) -> None:
    make(path, "--glibc", "2.17", "wheels", python=fake_python(path))
    module: dict = {}
    exec((path.parent / "manylinux").read_text(), module)
    assert [module["manylinux_compatible"](2, minor, "x86_64") for minor in (5, 17, 28)] == [True, True, False]


@pytest.mark.parametrize("fails", ["wheel --no-deps", "wheel --wheel-dir", "download"])
def test_a_download_that_fails_leaves_nothing(path: Path, fails: str) -> None:
    status, _, err = make(path, "--tar", "wheels", python=fake_python(path, fails=fails))
    (log,) = (path.parent / "a tmp").iterdir()
    assert status == 1
    assert err.startswith(f"error: {fails} is nowhere\nAbove are the last lines of {log}")
    assert ("may be a version without a wheel for Python" in err) == (fails == "wheel --wheel-dir")
    assert list((path.parent / "a working folder").iterdir()) == []


# ---- installing


class Wheelhouse:
    """One for this Python, of this machine, with a package that holds nothing and the pip that came with Python."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = folder / "install.sh"
        self.facts = {
            "release": RELEASE,
            "extras": "",
            "python": VERSION,
            "machine": platform.machine(),
            "glibc": "2.17",
            "horovod": "0.28.1",
        }
        (folder / "wheels").mkdir(parents=True)
        (folder / "scripts").mkdir()
        shutil.copy(INSTALL, self.script)
        program(folder / "scripts", "install_horovod.sh", FAKE_HOROVOD)
        (folder / "constraints.txt").touch()
        (folder / "horovod-0.28.1.tar.gz").touch()
        with zipfile.ZipFile(folder / "wheels" / WHEEL, "w") as archive:
            information = f"bloodcell_dist-{RELEASE}.dist-info"
            archive.writestr("bloodcell_dist/__init__.py", "")
            archive.writestr(
                f"{information}/METADATA", f"Metadata-Version: 2.1\nName: bloodcell-dist\nVersion: {RELEASE}\n"
            )
            archive.writestr(f"{information}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{information}/RECORD", "")
        self.sum()

    def sum(self, **facts: str) -> None:
        text = "".join(f"{name}={value}\n" for name, value in (self.facts | facts).items())
        (self.folder / "wheelhouse.txt").write_text(text)
        files = [file for file in self.folder.rglob("*") if file.is_file() and file.name != "SHA256SUMS"]
        sums = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(self.folder)}\n" for file in files]
        (self.folder / "SHA256SUMS").write_text("".join(sums))

    def add_pip(self) -> None:
        spec = importlib.util.find_spec("ensurepip")
        folders = [sysconfig.get_config_var("WHEEL_PKG_DIR")]
        folders += [str(Path(spec.origin).parent / "_bundled")] if spec and spec.origin else []
        found = [wheel for folder in folders if folder for wheel in Path(folder).glob("pip-*.whl")]
        if not found:
            pytest.skip("this Python comes without ensurepip")
        shutil.copy(found[0], self.folder / "wheels")
        self.sum()


@pytest.fixture
def wheelhouse(tmp_path: Path) -> Wheelhouse:
    return Wheelhouse(tmp_path / "a wheelhouse")


def refused(wheelhouse: Wheelhouse, path: Path, *arguments: str | Path) -> str:
    """Its message; nothing may have been made."""
    arguments = arguments or ("--no-horovod", "--python", sys.executable, "env")
    before = sorted(path.parent.rglob("*"))
    status, _, err = run(wheelhouse.script, *arguments, path=path)
    assert status == 2
    assert set(path.parent.rglob("*")) - set(before) <= {path.parent / "a tmp", path.parent / "a working folder"}
    return err


def test_installs_with_nothing_but_the_folder(wheelhouse: Wheelhouse, path: Path, tmp_path: Path) -> None:
    """Neither settings of pip nor packages on a module's PYTHONPATH get in; a second time completes."""
    wheelhouse.add_pip()
    module = tmp_path / "module" / f"bloodcell_dist-{RELEASE}.dist-info"
    module.mkdir(parents=True)
    (module / "METADATA").write_text(f"Metadata-Version: 2.1\nName: bloodcell-dist\nVersion: {RELEASE}\n")
    settings = {"PIP_CONSTRAINT": "/no/file", "PIP_INDEX_URL": "https://nowhere.invalid"}
    settings["PYTHONPATH"] = str(module.parent)
    arguments = ["--no-horovod", "--python", sys.executable, "my env"]
    status, out, err = run(wheelhouse.script, *arguments, path=path, **settings)
    assert (status, err) == (0, "")
    environment = tmp_path / "a working folder" / "my env"
    (package,) = environment.glob("lib/python3*/site-packages/bloodcell_dist")
    assert f"PYTHONPATH is set aside; unset it for the package too: {module.parent}\n" in out
    command = quoted(environment / "bin" / "bloodcell-dist")
    assert f"Installed. Try:\n    {command} --version\n    {command} doctor\n" in out
    assert out.endswith(f"    cp -r {quoted(package)}/slurm {quoted(package)}/configs .\n")
    shutil.rmtree(package)
    shutil.rmtree(package.with_name(f"bloodcell_dist-{RELEASE}.dist-info"))
    status, _, err = run(wheelhouse.script, "--no-horovod", "my env", path=path)
    assert (status, err) == (0, "")
    assert (package / "__init__.py").is_file()
    assert list((tmp_path / "a tmp").iterdir()) == []


def test_horovod_is_built_from_the_folder(wheelhouse: Wheelhouse, path: Path, tmp_path: Path) -> None:
    wheelhouse.add_pip()
    program(path, "g++")
    program(path, "make")
    arguments = ["--python", sys.executable, str(tmp_path / "env")]
    status, out, err = run(wheelhouse.script, *arguments, path=path, HOROVOD_STATUS="1")
    failed = f"The package is installed in {tmp_path}/env, Horovod is not; the same command tries again.\n"
    assert (status, err) == (1, failed)
    assert "Installed." not in out
    status, out, err = run(wheelhouse.script, *arguments, path=path)
    assert (status, err) == (0, "")
    assert "Installed. Try:\n" in out
    python = tmp_path / "env" / "bin" / "python"
    told = Path(f"{python}.horovod").read_text().splitlines()
    assert told[:3] == [str(python), f"{wheelhouse.folder}/horovod-0.28.1.tar.gz", "1"]
    assert told[3].endswith("/wheelhouse/wheels")  # of one folder with spaces in its name, pip would make several
    assert "SPACE" not in told[3]


def test_plan_of_an_installation(wheelhouse: Wheelhouse, path: Path, tmp_path: Path) -> None:
    (wheelhouse.folder / "wheels" / "pip-26.0-py3-none-any.whl").touch()
    wheelhouse.sum(extras="gpu,test")
    program(path, "g++")
    program(path, "make")
    status, out, err = run(wheelhouse.script, "--dry-run", "--python", sys.executable, "env", path=path)
    assert (status, err) == (0, "")
    python = quoted(tmp_path / "a working folder" / "env" / "bin" / "python")
    assert f"{sys.executable} -m venv --without-pip " in out
    assert f"{python} {quoted(wheelhouse.folder)}/wheels/pip-26.0-py3-none-any.whl/pip install --quiet pip \n" in out
    assert f" bloodcell-dist\\[gpu\\,test\\]=={RELEASE} \n" in out
    assert out.endswith(f"{quoted(wheelhouse.folder)}/scripts/install_horovod.sh {python} \n")
    assert list((tmp_path / "a working folder").iterdir()) == []


def test_another_python_is_refused(wheelhouse: Wheelhouse, path: Path) -> None:
    wheelhouse.sum(python="3.99")
    assert refused(wheelhouse, path) == (
        f"The wheelhouse is for Python 3.99; {sys.executable} is {VERSION}.\n"
        "Load the cluster's module of Python 3.99, name one with --python, or make the wheelhouse for another.\n"
    )
    program(path, "python3", f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    message = refused(wheelhouse, path, "--no-horovod", "env")
    assert f"3.99; python3.99 is not there, python3 is {VERSION}, python is not there.\n" in message


def test_an_environment_of_another_python_is_refused(wheelhouse: Wheelhouse, path: Path, tmp_path: Path) -> None:
    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "env" / "pyvenv.cfg").touch()
    program(tmp_path / "env" / "bin", "python", "#!/bin/sh\necho 3.9\n")
    message = refused(wheelhouse, path, "--no-horovod", tmp_path / "env")
    assert f"is for Python {VERSION}; {tmp_path}/env/bin/python is 3.9.\n" in message


def test_the_first_python_on_path_that_fits_is_taken(wheelhouse: Wheelhouse, path: Path) -> None:
    program(path, "python3", f"#!/bin/sh\nexec '{sys.executable}' \"$@\"\n")
    (wheelhouse.folder / "wheels" / "pip-26.0-py3-none-any.whl").touch()
    wheelhouse.sum()
    out = run(wheelhouse.script, "--no-horovod", "--dry-run", "env", path=path)[1]
    assert "Python: python3\n" in out


def test_a_damaged_file_is_refused(wheelhouse: Wheelhouse, path: Path) -> None:
    (wheelhouse.folder / "constraints.txt").write_text("numpy==1.0\n")
    message = refused(wheelhouse, path)
    assert "constraints.txt: FAILED\n" in message
    assert message.endswith("The wheelhouse did not arrive whole. Copy it again.\n")


def test_a_missing_file_is_refused(wheelhouse: Wheelhouse, path: Path) -> None:
    (wheelhouse.folder / "horovod-0.28.1.tar.gz").unlink()
    assert "horovod-0.28.1.tar.gz: FAILED open or read\n" in refused(wheelhouse, path)


def test_damaged_sums_are_refused(wheelhouse: Wheelhouse, path: Path) -> None:
    sums = wheelhouse.folder / "SHA256SUMS"
    sums.write_text(sums.read_text()[7:])
    assert "Not of this wheelhouse" in refused(wheelhouse, path) or "improperly formatted" in refused(wheelhouse, path)
    sums.unlink()
    assert "it lacks SHA256SUMS. scripts/make_wheelhouse.sh makes one.\n" in refused(wheelhouse, path)


def test_a_wheel_that_is_not_listed_is_refused(wheelhouse: Wheelhouse, path: Path) -> None:
    (wheelhouse.folder / "wheels" / "numpy-1.0-py3-none-any.whl").touch()
    message = "Not of this wheelhouse, and pip might take it: wheels/numpy-1.0-py3-none-any.whl. Remove it.\n"
    assert refused(wheelhouse, path) == message


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"machine": "vax"}, f"This machine is {platform.machine()}, the wheelhouse is for vax.\n"),
        ({"glibc": "2.99"}, f"{platform.libc_ver()[1]}, the wheelhouse needs 2.99: make it with --glibc\n"),
    ],
)
def test_another_machine_is_refused(wheelhouse: Wheelhouse, path: Path, facts: dict[str, str], words: str) -> None:
    wheelhouse.sum(**facts)
    assert words in refused(wheelhouse, path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Name the environment to make. Usage: install.sh [--no-horovod] [--python PYTHON] [--dry-run] VENV\n"),
        (["a", "b"], "One VENV, not two: a, b\n"),
        (["--wet-run"], "Unknown option --wet-run. Usage: install.sh"),
        (["env", "--python"], "--python needs a value. Usage: install.sh"),
        (["../bin"], "/../bin is there, and is no virtual environment. Name another place.\n"),
        (
            ["--python", sys.executable, "env"],
            "No g++, which Horovod's build needs. Load the cluster's compiler module",
        ),
    ],
)
def test_mistakes(wheelhouse: Wheelhouse, path: Path, arguments: list[str], words: str) -> None:
    status, _, err = run(wheelhouse.script, *arguments, path=path)
    assert status == 2
    assert words in err


def test_an_environment_inside_the_wheelhouse_is_refused(wheelhouse: Wheelhouse, path: Path) -> None:
    inside = wheelhouse.folder / "env"
    assert refused(wheelhouse, path, inside) == f"{inside} is inside the wheelhouse. Name a place outside it.\n"


@pytest.mark.parametrize("script", [MAKE, INSTALL])
def test_the_scripts_can_be_run(script: Path) -> None:
    assert os.access(script, os.X_OK)
    help_text = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert "\nExit status: 0 " in help_text
