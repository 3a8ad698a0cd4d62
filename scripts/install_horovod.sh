#!/usr/bin/env bash
# Builds Horovod for the TensorFlow of one Python, with what the machine has: NCCL, MPI, Gloo.
usage="scripts/install_horovod.sh [--dry-run] [--force] [PYTHON]

PYTHON     whose environment gets Horovod; without it .venv/bin/python of this checkout, else python3
--dry-run  print what would be built and how, and change nothing
--force    build even where a Horovod with all that is wanted is installed and works

What is found here is built; HOROVOD_* variables that are set win. Without internet: PIP_NO_INDEX and PIP_FIND_LINKS
as for pip, and HOROVOD_SOURCE=/path/horovod-0.28.1.tar.gz for Horovod itself.
Exit status: 0 installed and working; 1 the build failed; 2 something is missing, and the message says what."
set -euo pipefail

version=0.28.1
tensorflow=2.18 # the newest that this Horovod compiles against
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

stop() { # STATUS MESSAGE
    echo "$2" >&2
    exit "$1"
}

# ---- what is asked for

dry_run='' force='' python=''
for argument in "$@"; do
    case $argument in
    --dry-run) dry_run=yes ;;
    --force) force=yes ;;
    -h | --help) echo "$usage" && exit ;;
    -*) stop 2 "Unknown option $argument. Usage: ${usage%%$'\n'*}" ;;
    *)
        [ -z "$python" ] || stop 2 "One PYTHON, not two: $python, $argument"
        python=$argument
        ;;
    esac
done
[ -n "$python" ] || ! [ -x "$root/.venv/bin/python" ] || python=$root/.venv/bin/python
python=${python:-python3}
found=$(command -v "$python") ||
    stop 2 "There is no $python. Name a Python with TensorFlow $tensorflow: ${usage%%$'\n'*}"
case $found in /*) python=$found ;; *) python=$PWD/$found ;; esac
source=${HOROVOD_SOURCE:-horovod==$version}
[ -z "${HOROVOD_SOURCE:-}" ] || [ -f "$source" ] || stop 2 "HOROVOD_SOURCE names no file: $source"
[ -z "${HOROVOD_WITHOUT_TENSORFLOW:-}" ] ||
    stop 2 "HOROVOD_WITHOUT_TENSORFLOW is set; unset it: this is for TensorFlow."

# Horovod's build fails in folders with spaces, so its own has none.
work=$(mktemp -d)
case $work in *[[:space:]]*) rmdir "$work" && work=$(TMPDIR=/tmp mktemp -d) ;; esac
trap 'rm -rf "$work"' EXIT

# ---- Python, TensorFlow and the Horovod that is there

is_1() { [ "${!1:-}" = 1 ]; } # NAME: what Horovod takes for yes
error() { (grep -i 'error: ' "$work/errors" || cat "$work/errors") | "$1" -n 1; } # head|tail

# Fills `fact` from a new process; fails where TensorFlow or a Horovod that is there does not work. Horovod starts by
# Gloo, because MPI may refuse to outside a job, and Python in a folder of ours, or it would import from the caller's.
declare -A fact
look() {
    local key value status=0
    is_1 HOROVOD_WITHOUT_GLOO || local -x HOROVOD_CONTROLLER=gloo HOROVOD_CPU_OPERATIONS=gloo
    (cd "$work" && TF_CPP_MIN_LOG_LEVEL=3 "$python" -W ignore - >facts 2>errors) <<'PYTHON' || status=$?
import importlib.metadata
import importlib.util
import json
import pathlib
import sys

import tensorflow


def installed(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


# What the build and horovodrun import; distutils, for Python 3.12, is setuptools' before 80.
needed = ["pip", "wheel", "packaging", "cloudpickle", "psutil", "pyyaml"]
lacking = [name for name in needed if not installed(name)]
if not 0 < int(installed("setuptools").split(".")[0] or 0) < 80:
    lacking.append("setuptools<80")
nccl = [path for path in map(pathlib.Path, sys.path) if (path / "nvidia/nccl/include/nccl.h").exists()]
there = importlib.util.find_spec("horovod") is not None

print("version", sys.version.split()[0])
print("prefix", sys.prefix)
print("executable", sys.executable)
print("tensorflow", tensorflow.__version__)
print("library", pathlib.Path(tensorflow.__file__).parent)
print("cuda", tensorflow.sysconfig.get_build_info().get("cuda_version", ""))
print("nccl", nccl[0] / "nvidia/nccl" if nccl else "")
print("lacking", *lacking)
print("there", "yes" if there else "", flush=True)
if not there:
    sys.exit()

import horovod
import horovod.tensorflow as hvd

hvd.init()
if hvd.size() != 1:
    sys.exit(f"its size is {hvd.size()}, not 1")
built = {"tensorflow": True, "gloo": hvd.gloo_built(), "mpi": hvd.mpi_built(), "nccl": hvd.nccl_built()}
built_for = json.loads((pathlib.Path(horovod.__file__).parent / "metadata.json").read_text())["tensorflow"]
print("release", f"{horovod.__version__.split('+')[0]} for TensorFlow {built_for}")
print("built", *[part for part, is_built in built.items() if is_built])
PYTHON
    fact=()
    while read -r key value; do fact[$key]=$value; done <"$work/facts"
    return "$status"
}

state=''
look || state="does not work ($(error tail))"
mend="Install it there: '$python' -m pip install 'tensorflow==$tensorflow.*' (for .venv: make venv)"
[ -n "${fact[tensorflow]:-}" ] || stop 2 "$python does not import TensorFlow: $(error tail)"$'\n'"$mend"
[[ ${fact[tensorflow]} == "$tensorflow".* ]] ||
    stop 2 "$python has TensorFlow ${fact[tensorflow]}; Horovod $version is built against $tensorflow."$'\n'"$mend"
echo "Python: $python (${fact[version]}, TensorFlow ${fact[tensorflow]})"

# ---- compiler, make, cmake

for tool in "${CXX:-g++}" make; do
    command -v "$tool" >/dev/null ||
        stop 2 "No $tool. Install it (Debian: apt-get install g++ make), or load the cluster's compiler module."
done
echo "Compiler: $(command -v "${CXX:-g++}")"

find_cmake() { # from 3.13, which Horovod asks for, and before 4, which may refuse so old a project
    local candidate
    for candidate in cmake "${fact[prefix]}/bin/cmake"; do
        [[ $("$candidate" --version 2>/dev/null) =~ ([0-9]+)\.([0-9]+) ]] &&
            ((BASH_REMATCH[1] == 3 && BASH_REMATCH[2] >= 13)) && command -v "$candidate" && return
    done
}
cmake=${HOROVOD_CMAKE:-$(find_cmake || true)}
[ -n "$cmake" ] || fact[lacking]+=' cmake>=3.13,<4'
read -ra lacking <<<"${fact[lacking]}"
echo "cmake: ${cmake:-none from 3.13 to before 4, will be installed}"

# ---- NCCL, MPI, Gloo

settings=() wanted=(tensorflow)
prefer() { [ -n "${!1+set}" ] || settings+=("$1=$2"); } # NAME VALUE: unless the user set it, be it to nothing
tell() {                                                # PART yes|no REASON
    echo "$1: $2 ($3)"
    [ "$2" = no ] || wanted+=("${1,,}")
}
wants() { [[ " ${wanted[*]} " == *" $1 "* ]]; } # part
compiles() {                                    # HEADER COMPILER ARGUMENT...: a program that includes the header
    echo "#include <$1>" >"$work/try"
    "${@:2}" -c "$work/try" -o "$work/try.o" >/dev/null 2>"$work/errors"
}

prefer HOROVOD_WITH_TENSORFLOW 1
for framework in PYTORCH MXNET; do
    is_1 "HOROVOD_WITH_$framework" || prefer "HOROVOD_WITHOUT_$framework" 1
done

cuda=${HOROVOD_CUDA_HOME:-${CUDA_HOME:-}}
nvcc=$(command -v "${cuda:+$cuda/bin/}nvcc" || true)
[ -n "$cuda" ] || [ -z "$nvcc" ] || cuda=$(dirname "$(dirname "$(readlink -f "$nvcc")")")

find_nccl() { # sets nccl, nccl_lib; NCCL_HOME and NCCL_ROOT are set by clusters' modules, TensorFlow's own comes by pip
    local places=("${HOROVOD_NCCL_HOME:-}")
    [ -n "${places[0]}" ] || places=("${NCCL_HOME:-}" "${NCCL_ROOT:-}" "${fact[nccl]}" "$cuda" /usr)
    for nccl in "${places[@]}"; do
        for nccl_lib in "$nccl/lib" "$nccl/lib64" "$nccl/lib/$(uname -m)-linux-gnu"; do
            [ -f "$nccl/include/nccl.h" ] || continue
            [ ! -f "$nccl_lib/libnccl.so.2" ] && [ ! -f "$nccl_lib/libnccl_static.a" ] || return 0
        done
    done
    return 1
}
gpu=''
for name in "${!HOROVOD_GPU_@}"; do gpu+="${gpu:+, }$name=${!name}"; done
if [ -n "$gpu" ]; then
    case $gpu in *=NCCL*) tell NCCL yes "$gpu" ;; *) tell NCCL no "$gpu" ;; esac
elif [ -z "$nvcc" ]; then
    tell NCCL no "no ${cuda:+$cuda/bin/}nvcc; load the cluster's CUDA module or set CUDA_HOME"
elif [ ! -f "$cuda/include/cuda_runtime.h" ] && [ ! -f "$cuda/targets/$(uname -m)-linux/include/cuda_runtime.h" ]; then
    tell NCCL no "no CUDA headers in $cuda; set CUDA_HOME"
elif [ -z "${fact[cuda]}" ]; then
    tell NCCL no "this TensorFlow is built without CUDA"
elif ! [[ $("$nvcc" --version) =~ release\ ([0-9]+) && ${BASH_REMATCH[1]} = "${fact[cuda]%%.*}" ]]; then
    # The driver suits TensorFlow's CUDA. Horovod is linked to nvcc's, and with a newer one fails in the first step.
    tell NCCL no "nvcc is of CUDA ${BASH_REMATCH[1]:-?}, TensorFlow of ${fact[cuda]}; load such a module, set CUDA_HOME"
elif ! find_nccl; then
    tell NCCL no "no nccl.h and libnccl; set HOROVOD_NCCL_HOME"
elif ! compiles nccl.h "$nvcc" -x cu -I "$nccl/include"; then
    tell NCCL no "nvcc does not compile: $(error head)"
else
    tell NCCL yes "$nccl_lib"
    prefer HOROVOD_GPU_OPERATIONS NCCL
fi
if wants nccl && [ -n "$nvcc" ]; then
    # Horovod compiles with the nvcc of this variable, and asks the one on PATH for its architectures.
    prefer HOROVOD_CUDA_HOME "$cuda"
    settings+=("PATH=$cuda/bin:$PATH")
fi
if wants nccl && [ -z "${HOROVOD_NCCL_LIB:-}" ] && find_nccl; then
    if [ -f "$nccl_lib/libnccl.so" ] || [ -f "$nccl_lib/libnccl_static.a" ]; then
        prefer HOROVOD_NCCL_HOME "$nccl"
    else # pip's lacks the name that the linker looks for; $ORIGIN is where Horovod will be
        mkdir -p "$work/nccl/lib"
        ln -s "$nccl/include" "$work/nccl/include"
        ln -s "$nccl_lib/libnccl.so.2" "$work/nccl/lib/libnccl.so"
        [ "$nccl" != "${fact[nccl]}" ] || nccl_lib="\$ORIGIN/../../nvidia/nccl/lib"
        settings+=("HOROVOD_NCCL_HOME=$work/nccl" "LDFLAGS=${LDFLAGS:-} -Wl,-rpath,$nccl_lib")
        prefer HOROVOD_NCCL_LINK SHARED
    fi
fi

if is_1 HOROVOD_WITHOUT_MPI; then
    tell MPI no "HOROVOD_WITHOUT_MPI=1"
elif is_1 HOROVOD_WITH_MPI; then
    tell MPI yes "HOROVOD_WITH_MPI=1"
elif ! command -v mpicxx >/dev/null; then
    tell MPI no "no mpicxx; Gloo does without, or load the cluster's MPI module"
elif ! compiles mpi.h mpicxx -x c++; then
    tell MPI no "mpicxx does not compile: $(error head)"
else
    tell MPI yes "$(command -v mpicxx)"
    prefer HOROVOD_WITH_MPI 1
fi
wants mpi || prefer HOROVOD_WITHOUT_MPI 1

if is_1 HOROVOD_WITHOUT_GLOO; then
    tell Gloo no "HOROVOD_WITHOUT_GLOO=1"
else
    tell Gloo yes "it needs nothing"
    prefer HOROVOD_WITH_GLOO 1
    wants mpi || prefer HOROVOD_CPU_OPERATIONS GLOO
fi

# ---- what is there, and the commands

wanted_is_there() {
    local part
    [ "${fact[release]:-}" = "$version for TensorFlow ${fact[tensorflow]}" ] || return
    for part in "${wanted[@]}"; do [[ " ${fact[built]:-} " == *" $part "* ]] || return; done
}
[ -z "${fact[there]}" ] || echo "Horovod that is there: ${state:-${fact[release]}, with ${fact[built]}}"

[ -n "${MAKEFLAGS:-}" ] || settings+=("MAKEFLAGS=-j$(nproc)") # Horovod would take 8 jobs on any machine
[ -z "$cmake" ] || prefer HOROVOD_CMAKE "$cmake"
builder=$python
if [[ ${fact[library]} == *[[:space:]]* ]]; then # Horovod cannot; through a link it sees none
    [[ ${fact[library]} == "${fact[prefix]}"/* && ${fact[executable]} == "${fact[prefix]}"/* ]] ||
        stop 2 "Horovod cannot be built against a TensorFlow in a folder with spaces outside PYTHON's: ${fact[library]}"
    ln -s "${fact[prefix]}" "$work/env"
    builder=$work/env${fact[executable]#"${fact[prefix]}"}
fi
# pip builds, not uv, which does not read PIP_NO_INDEX and PIP_FIND_LINKS. From its cache pip would take what was built
# for another TensorFlow.
pip=("$python" -m pip --disable-pip-version-check)
first=("${pip[@]}" install "${lacking[@]}")
[ ! "${fact[prefix]}" -ef "$root/.venv" ] || first+=(-c "$root/constraints.txt")
build=(env "${settings[@]}" "TMPDIR=$work" "$builder" -m pip --disable-pip-version-check wheel -v --no-build-isolation
    --no-deps --no-cache-dir --no-binary horovod --wheel-dir "$work/wheel" "$source")
install=("${pip[@]}" install --no-deps --no-index --force-reinstall)

if [ -n "$dry_run" ]; then
    show() { printf '%q ' "$@" && echo; }
    [ "${#lacking[@]}" = 0 ] || show "${first[@]}"
    show "${build[@]}"
    show "${install[@]}" "$work/wheel/horovod.whl"
    exit
fi

# ---- build

if [ -z "$force" ] && wanted_is_there; then
    echo "It has all that is wanted: nothing to do (--force builds it again)"
    exit
fi
remove() { "${pip[@]}" uninstall --quiet --yes horovod; }
log=$(mktemp "${TMPDIR:-/tmp}/horovod-XXXXXX.log")
failed() { # MESSAGE. The compiler's errors stand before pip's traceback.
    sed '/^ *Traceback (most/,$d' "$log" | tail -n 30 | cut -c 1-300 >&2
    stop 1 "$1"$'\n'"Above are the last lines of $log"
}

echo "Building: 2 minutes on 2 cores, longer with NCCL"
if [ "${lacking[0]:-}" = pip ]; then # environments made by uv have none, and Debian's Python cannot make it
    links=${PIP_FIND_LINKS:-}
    "$python" -m ensurepip >>"$log" 2>&1 || uv pip install --python "$python" ${PIP_NO_INDEX:+--no-index} \
        ${links:+--find-links "${links// /,}"} pip >>"$log" 2>&1 ||
        failed "$python has no pip, and it could not be installed."
fi
[ -z "$state" ] || remove # whatever becomes of the build
[ "${#lacking[@]}" = 0 ] || "${first[@]}" >>"$log" 2>&1 || failed "The build needs ${lacking[*]}; installing failed."
if [ -z "$cmake" ]; then
    HOROVOD_CMAKE=$(find_cmake) || failed "cmake was installed, but neither on PATH nor in ${fact[prefix]}/bin."
    export HOROVOD_CMAKE
fi
"${build[@]}" >>"$log" 2>&1 || failed "Horovod was not built."
"${install[@]}" "$work"/wheel/*.whl >>"$log" 2>&1 || failed "Horovod was built, but not installed."

if ! look || [ -z "${fact[there]}" ]; then
    remove
    failed "Horovod was built, but not for TensorFlow, or it does not work, and was removed again. $(error tail)."
fi
echo "Installed: Horovod ${fact[release]}, with ${fact[built]}"
wanted_is_there || failed "It works, but is not what was wanted: $version with ${wanted[*]}."
rm "$log"
