"""What scripts/install_horovod.sh chooses and refuses, on a PATH and in environments made for it; none compiles."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "install_horovod.sh"
TOOLS = ["bash", "cat", "cut", "dirname", "env", "grep", "head", "ln", "mkdir", "mktemp"]
TOOLS += ["nproc", "readlink", "rm", "rmdir", "sed", "tail", "uname"]

TENSORFLOW = """
__version__ = "{version}"
class sysconfig:
    get_build_info = staticmethod(lambda: {build})
"""
HOROVOD = """
init = lambda: None
size = lambda: 1
gloo_built = lambda: True
mpi_built = lambda: False
nccl_built = lambda: 0
"""
# Logs its arguments; its `install` installs, and `uninstall` removes, the Horovod that lies beside it.
PIP = """
import pathlib, shutil, sys
here = pathlib.Path(__file__).parent
command = next(argument for argument in sys.argv[1:] if not argument.startswith("-"))
with open(here / "log", "a") as log:
    print(command, file=log)
if command == "wheel":
    if not (here / "horovod").exists():
        sys.exit("error: no compiler likes it")
    folder = pathlib.Path(sys.argv[sys.argv.index("--wheel-dir") + 1])
    folder.mkdir()
    (folder / "horovod.whl").touch()
elif command == "install":
    shutil.copytree(here / "horovod", here.parent / "horovod", dirs_exist_ok=True)
elif command == "uninstall":
    shutil.rmtree(here.parent / "horovod")
"""


class Machine:
    """A PATH with g++, make and cmake, and a Python that has a TensorFlow by name."""

    def __init__(self, root: Path, environment: str = "env") -> None:
        self.root = root
        self.script = SCRIPT
        self.bin = root / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found, tool
            (self.bin / tool).symlink_to(found)
        self.program("g++")
        self.program("make")
        self.program("cmake", "cmake version 3.25.1")
        self.environment = root / environment
        venv.create(self.environment, symlinks=True)
        self.python = self.environment / "bin" / "python"
        self.packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(self.environment)}))
        self.tensorflow()
        for name in ("pip", "wheel", "packaging", "cloudpickle", "psutil", "pyyaml", "setuptools"):
            metadata = self.packages / f"{name}-79.0.dist-info" / "METADATA"
            metadata.parent.mkdir()
            metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 79.0\n")
        self.variables = {"TMPDIR": str(root)}

    def program(self, name: str, output: str = "", status: int = 0) -> Path:
        path = self.bin / name
        path.write_text(f"#!/bin/sh\necho '{output}' >&{1 if status == 0 else 2}\nexit {status}\n")
        path.chmod(0o755)
        return path

    def package(self, name: str | Path, text: str) -> Path:
        folder = self.packages / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.py").write_text(text)
        return folder

    def tensorflow(self, version: str = "2.18.1", cuda: str = "12.5.1") -> None:
        build = {"cuda_version": cuda} if cuda else {}
        self.package("tensorflow", TENSORFLOW.format(version=version, build=build))

    def horovod(self, inside: str = "", text: str = HOROVOD, built_for: str = "2.18.1") -> None:
        """Installed, or with inside="pip" what pip installs."""
        folder = self.package(Path(inside, "horovod"), "__version__ = '0.28.1'")
        self.package(Path(inside, "horovod", "tensorflow"), text)
        (folder / "metadata.json").write_text(f'{{"tensorflow": "{built_for}"}}')

    def pip(self) -> Path:
        folder = self.package("pip", "")
        (folder / "__main__.py").write_text(PIP)
        return folder / "log"

    def cuda(self, release: str = "12.5") -> Path:
        """A toolkit whose nvcc is on PATH."""
        home = self.root / "cuda"
        (home / "include").mkdir(parents=True)
        (home / "bin").mkdir()
        (home / "include" / "cuda_runtime.h").touch()
        self.program("nvcc", f"Cuda compilation tools, release {release}, V{release}.82").rename(home / "bin" / "nvcc")
        (self.bin / "nvcc").symlink_to(home / "bin" / "nvcc")
        return home

    def run(self, *arguments: str | Path, **variables: str | Path) -> tuple[int, str, str]:
        """(status, out, err)"""
        environment = {"PATH": self.bin, **self.variables, **variables}
        done = subprocess.run(
            [self.script, *arguments],
            env={name: str(value) for name, value in environment.items()},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def plan(self, **variables: str | Path) -> str:
        """What --dry-run prints."""
        status, out, err = self.run("--dry-run", self.python, **variables)
        assert (status, err) == (0, "")
        return out


def nccl(folder: Path, *libraries: str) -> Path:
    (folder / "include").mkdir(parents=True, exist_ok=True)
    (folder / "include" / "nccl.h").touch()
    (folder / "lib").mkdir(exist_ok=True)
    for library in libraries:
        (folder / "lib" / library).touch()
    return folder


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_neither_nccl_nor_mpi(machine: Machine) -> None:
    plan = machine.plan()
    assert f"Python: {machine.python} ({sys.version.split()[0]}, TensorFlow 2.18.1)\n" in plan
    assert "NCCL: no (no nvcc; load the cluster's CUDA module or set CUDA_HOME)\n" in plan
    assert "MPI: no (no mpicxx;" in plan
    assert "Gloo: yes" in plan
    wanted = ["HOROVOD_WITH_TENSORFLOW=1", "HOROVOD_WITHOUT_PYTORCH=1", "HOROVOD_WITHOUT_MXNET=1"]
    wanted += ["HOROVOD_WITHOUT_MPI=1", "HOROVOD_WITH_GLOO=1", "HOROVOD_CPU_OPERATIONS=GLOO"]
    wanted += [f"{machine.python} -m pip", "--no-build-isolation", "horovod==0.28.1"]
    assert [word for word in wanted if word not in plan] == []
    assert "HOROVOD_GPU" not in plan
    assert list(machine.root.glob("tmp.*")) == []


def test_mpi(machine: Machine) -> None:
    path = machine.program("mpicxx")
    plan = machine.plan()
    assert f"MPI: yes ({path})\n" in plan
    assert " HOROVOD_WITH_MPI=1 " in plan
    assert "HOROVOD_CPU_OPERATIONS" not in plan


def test_mpi_that_does_not_compile(machine: Machine) -> None:
    machine.program("mpicxx", "try:1: fatal error: mpi.h: No such file", status=1)
    plan = machine.plan()
    assert "MPI: no (mpicxx does not compile: try:1: fatal error: mpi.h: No such file)\n" in plan
    assert " HOROVOD_WITHOUT_MPI=1 " in plan


@pytest.mark.parametrize("variable", ["HOROVOD_NCCL_HOME", "NCCL_HOME", "NCCL_ROOT"])
def test_nccl_of_a_module(machine: Machine, variable: str) -> None:
    cuda, home = machine.cuda(), nccl(machine.root / "nccl", "libnccl.so", "libnccl.so.2")
    plan = machine.plan(**{variable: home})
    assert f"NCCL: yes ({home}/lib)\n" in plan
    assert " HOROVOD_GPU_OPERATIONS=NCCL " in plan
    assert f" HOROVOD_CUDA_HOME={cuda} " in plan
    assert (f" HOROVOD_NCCL_HOME={home} " in plan) == (variable != "HOROVOD_NCCL_HOME")


def test_nccl_that_pip_installed(machine: Machine) -> None:
    """It has no libnccl.so, and Horovod must find it where it is imported."""
    machine.cuda()
    home = nccl(machine.packages / "nvidia" / "nccl", "libnccl.so.2")
    plan = machine.plan()
    assert f"NCCL: yes ({home}/lib)\n" in plan
    assert r"\$ORIGIN/../../nvidia/nccl/lib " in plan
    assert " HOROVOD_NCCL_LINK=SHARED " in plan


def test_cuda_home_comes_before_path(machine: Machine) -> None:
    home = machine.cuda().rename(machine.root / "another cuda")
    (machine.bin / "nvcc").unlink()
    machine.program("nvcc", "an older release 11.8")
    plan = machine.plan(CUDA_HOME=home, NCCL_HOME=nccl(machine.root / "nccl", "libnccl_static.a"))
    assert "NCCL: yes" in plan
    assert r"PATH=" + str(home).replace(" ", r"\ ") + "/bin:" in plan


def test_nccl_is_left_out_with_a_reason(machine: Machine) -> None:
    home = machine.cuda()
    empty = {"HOROVOD_NCCL_HOME": machine.root / "empty"}
    assert "NCCL: no (no nccl.h and libnccl; set HOROVOD_NCCL_HOME)\n" in machine.plan(**empty)
    assert "NCCL: no (no /nowhere/bin/nvcc; load" in machine.plan(CUDA_HOME="/nowhere")
    machine.tensorflow(cuda="")
    assert "NCCL: no (this TensorFlow is built without CUDA)\n" in machine.plan()
    machine.tensorflow(cuda="13.1")
    assert "NCCL: no (nvcc is of CUDA 12, TensorFlow of 13.1; load such a module" in machine.plan()
    (home / "include" / "cuda_runtime.h").unlink()
    assert f"NCCL: no (no CUDA headers in {home}; set CUDA_HOME)\n" in machine.plan()


def test_variables_of_the_user_win(machine: Machine) -> None:
    machine.cuda()
    machine.program("mpicxx")
    nccl(machine.packages / "nvidia" / "nccl", "libnccl.so.2")
    given = {"HOROVOD_GPU_OPERATIONS": "", "HOROVOD_WITHOUT_MPI": "1", "HOROVOD_CPU_OPERATIONS": "CCL"}
    given |= {"HOROVOD_WITH_PYTORCH": "1", "HOROVOD_CMAKE": "/opt/cmake", "MAKEFLAGS": "-j7"}
    plan = machine.plan(**given)
    assert "NCCL: no (HOROVOD_GPU_OPERATIONS=)\n" in plan
    assert "MPI: no (HOROVOD_WITHOUT_MPI=1)\n" in plan
    assert "cmake: /opt/cmake\n" in plan
    command = next(line for line in plan.splitlines() if line.startswith("env "))
    assert [name for name in given if f" {name}=" in command] == []
    assert "HOROVOD_WITHOUT_PYTORCH" not in command
    forced = machine.plan(HOROVOD_GPU_ALLREDUCE="NCCL", HOROVOD_WITH_MPI="1", HOROVOD_WITHOUT_GLOO="1")
    assert "NCCL: yes (HOROVOD_GPU_ALLREDUCE=NCCL)\n" in forced
    assert "MPI: yes (HOROVOD_WITH_MPI=1)\n" in forced
    assert "Gloo: no (HOROVOD_WITHOUT_GLOO=1)\n" in forced
    assert "HOROVOD_GPU_OPERATIONS" not in forced  # Horovod refuses both


def test_without_tensorflow(machine: Machine) -> None:
    (machine.packages / "tensorflow" / "__init__.py").write_text("raise ImportError('libz.so is missing')")
    status, out, err = machine.run("--dry-run", machine.python)
    assert (status, out) == (2, "")
    assert f"{machine.python} does not import TensorFlow: ImportError: libz.so is missing\n" in err
    assert f"'{machine.python}' -m pip install 'tensorflow==2.18.*'" in err


def test_with_another_tensorflow(machine: Machine) -> None:
    machine.tensorflow("2.19.0")
    status, out, err = machine.run("--dry-run", machine.python)
    assert (status, out) == (2, "")
    assert f"{machine.python} has TensorFlow 2.19.0; Horovod 0.28.1 is built against 2.18.\n" in err
    assert "pip install 'tensorflow==2.18.*'" in err


def test_without_a_compiler(machine: Machine) -> None:
    (machine.bin / "g++").unlink()
    status, _, err = machine.run("--dry-run", machine.python)
    assert status == 2
    assert err == "No g++. Install it (Debian: apt-get install g++ make), or load the cluster's compiler module.\n"


@pytest.mark.parametrize("output", ["cmake version 3.12.4", "cmake version 4.1.0"])
def test_a_cmake_that_does_not_fit(machine: Machine, output: str) -> None:
    machine.program("cmake", output)
    plan = machine.plan()
    assert "cmake: none from 3.13 to before 4, will be installed\n" in plan
    assert f"{machine.python} -m pip --disable-pip-version-check install cmake\\>=3.13\\,\\<4 \n" in plan
    assert "HOROVOD_CMAKE" not in plan


def test_what_the_build_imports_is_installed_first(machine: Machine) -> None:
    for name in ("pip", "psutil"):
        shutil.rmtree(machine.packages / f"{name}-79.0.dist-info")
    metadata = machine.packages / "setuptools-79.0.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text().replace("79.0", "80.1"))
    assert " install pip psutil setuptools\\<80 \n" in machine.plan()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--wet-run"], "Unknown option --wet-run. Usage: scripts/install_horovod.sh [--dry-run] [--force] [PYTHON]"),
        (["a", "b"], "One PYTHON, not two: a, b"),
        (["no/python"], "There is no no/python. Name a Python with TensorFlow 2.18"),
    ],
)
def test_mistakes(machine: Machine, arguments: list[str], words: str) -> None:
    status, out, err = machine.run(*arguments)
    assert (status, out) == (2, "")
    assert words in err


def test_mistaken_variables(machine: Machine) -> None:
    status, _, err = machine.run("--dry-run", machine.python, HOROVOD_SOURCE="/no where/horovod.tar.gz")
    assert (status, err) == (2, "HOROVOD_SOURCE names no file: /no where/horovod.tar.gz\n")
    status, _, err = machine.run("--dry-run", machine.python, HOROVOD_WITHOUT_TENSORFLOW="1")
    assert (status, err) == (2, "HOROVOD_WITHOUT_TENSORFLOW is set; unset it: this is for TensorFlow.\n")


def test_python_by_default(machine: Machine) -> None:
    checkout = machine.root / "a checkout"
    (checkout / "scripts").mkdir(parents=True)
    machine.script = checkout / "scripts" / SCRIPT.name
    shutil.copy(SCRIPT, machine.script)
    wrapper = machine.program("python3")  # a link would not be in the environment
    wrapper.write_text(f'#!/bin/sh\nexec "{machine.python}" "$@"\n')
    assert f"Python: {wrapper} (" in machine.run("--dry-run")[1]
    (checkout / ".venv").symlink_to(machine.environment)
    (checkout / "constraints.txt").touch()
    machine.program("cmake", "cmake version 4.1.0")
    status, out, err = machine.run("--dry-run")
    assert (status, err) == (0, "")
    assert f"Python: {checkout}/.venv/bin/python (" in out
    pins = str(checkout / "constraints.txt").replace(" ", r"\ ")
    assert f" -c {pins}" in out  # only .venv has these pins


def test_spaces(tmp_path: Path) -> None:
    """Horovod's own build fails in paths with spaces: none may reach it."""
    machine = Machine(tmp_path, environment="an env")
    source, scratch = tmp_path / "my horovod-0.28.1.tar.gz", tmp_path / "my scratch"
    source.touch()
    scratch.mkdir()
    plan = machine.plan(HOROVOD_SOURCE=source, TMPDIR=scratch)
    command = next(line for line in plan.splitlines() if line.startswith("env "))
    assert command.endswith(str(source).replace(" ", r"\ ") + " ")
    assert "\\ " not in command.removesuffix(str(source).replace(" ", r"\ ") + " ")
    assert "/env/bin/python -m pip " in command
    assert str(machine.python).replace(" ", r"\ ") + " -m pip" in plan.splitlines()[-1]
    assert list(scratch.iterdir()) == []


def test_nothing_to_do(machine: Machine) -> None:
    log = machine.pip()
    machine.horovod()
    status, out, err = machine.run(machine.python)
    assert (status, err) == (0, "")
    assert "Horovod that is there: 0.28.1 for TensorFlow 2.18.1, with tensorflow gloo\n" in out
    assert out.endswith("nothing to do (--force builds it again)\n")
    assert not log.exists()


@pytest.mark.parametrize("reason", ["forced", "tensorflow", "broken", "absent"])
def test_builds(machine: Machine, reason: str) -> None:
    log = machine.pip()
    if reason != "absent":
        text = "raise ImportError('not built')" if reason == "broken" else HOROVOD
        machine.horovod(text=text, built_for="2.18.0" if reason == "tensorflow" else "2.18.1")
    machine.horovod(inside="pip")
    status, out, err = machine.run(machine.python, *(["--force"] if reason == "forced" else []))
    assert (status, err) == (0, "")
    assert ("does not work (ImportError: not built)" in out) == (reason == "broken")
    assert out.endswith("Installed: Horovod 0.28.1 for TensorFlow 2.18.1, with tensorflow gloo\n")
    assert log.read_text().split() == ["uninstall"] * (reason == "broken") + ["wheel", "install"]
    assert list(machine.root.glob("horovod-*.log")) == []


def test_a_horovod_without_tensorflow_does_not_stay(machine: Machine) -> None:
    machine.pip()
    machine.horovod(inside="pip", text="raise ImportError('Extension horovod.tensorflow has not been built')")
    status, _, err = machine.run(machine.python)
    assert status == 1
    assert "removed again. ImportError: Extension horovod.tensorflow has not been built" in err
    assert not (machine.packages / "horovod").exists()


def test_a_build_that_fails(machine: Machine) -> None:
    """One that did not work before is removed all the same; one that lacked something would stay."""
    machine.pip()
    machine.horovod(text="raise ImportError('not built')")
    status, _, err = machine.run(machine.python)
    assert status == 1
    (log,) = machine.root.glob("horovod-*.log")
    assert err == f"error: no compiler likes it\nHorovod was not built.\nAbove are the last lines of {log}\n"
    assert not (machine.packages / "horovod").exists()


def test_less_than_wanted_is_told(machine: Machine) -> None:
    machine.pip()
    machine.horovod(inside="pip")
    machine.program("mpicxx")
    status, out, err = machine.run(machine.python)
    assert status == 1
    assert "with tensorflow gloo\n" in out
    assert "It works, but is not what was wanted: 0.28.1 with tensorflow mpi gloo." in err


def test_the_script_can_be_run() -> None:
    assert os.access(SCRIPT, os.X_OK)
