#!/usr/bin/env bash
# Installs from the folder it lies in, which scripts/make_wheelhouse.sh made (as install.sh), without any network.
usage="install.sh [--no-horovod] [--python PYTHON] [--dry-run] VENV

VENV             where the virtual environment is made; it cannot be moved afterwards. One that is there is completed
--no-horovod     leave Horovod out; else it is built here, which needs g++ and make
--python PYTHON  of the version that the folder was made for; without it the first that fits of those on PATH
--dry-run        check everything, print what would be done, and change nothing

For Horovod with NCCL and MPI, first load the cluster's modules of CUDA 12, GCC and MPI, and build where compiling is
welcome: MAKEFLAGS=-j4 keeps it to 4 cores.
Exit status: 0 installed; 1 installing or Horovod's build failed; 2 something does not fit, and the message says what."
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

stop() { # STATUS MESSAGE
    echo "$2" >&2
    exit "$1"
}

# ---- what is asked for

venv='' horovod=yes wanted_python='' dry_run=''
while [ "$#" -gt 0 ]; do
    case $1 in
    --no-horovod) horovod='' ;;
    --python)
        wanted_python=${2:-}
        [ -n "$wanted_python" ] || stop 2 "--python needs a value. Usage: ${usage%%$'\n'*}"
        shift
        ;;
    --dry-run) dry_run=yes ;;
    -h | --help) echo "$usage" && exit ;;
    -*) stop 2 "Unknown option $1. Usage: ${usage%%$'\n'*}" ;;
    *)
        [ -z "$venv" ] || stop 2 "One VENV, not two: $venv, $1"
        venv=$1
        ;;
    esac
    shift
done
[ -n "$venv" ] || stop 2 "Name the environment to make. Usage: ${usage%%$'\n'*}"
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
case $venv/ in "$here"/*) stop 2 "$venv is inside the wheelhouse. Name a place outside it." ;; esac
if [ -e "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ] && [ -n "$(ls -A "$venv")" ]; then
    stop 2 "$venv is there, and is no virtual environment. Name another place."
fi

# ---- what came along

for name in wheelhouse.txt SHA256SUMS; do
    [ -f "$here/$name" ] || stop 2 "$here is no wheelhouse, it lacks $name. scripts/make_wheelhouse.sh makes one."
done
declare -A fact
while IFS='=' read -r key value; do fact[$key]=$value; done <"$here/wheelhouse.txt"
echo "Wheelhouse: bloodcell-dist ${fact[release]}${fact[extras]:+, extras ${fact[extras]}}, for Python ${fact[python]}"

listed() { sed 's/^[0-9a-f]* [ *]//' "$here/SHA256SUMS" | LC_ALL=C sort; }
present() { (cd "$here" && find . ! -type d ! -path ./SHA256SUMS -printf '%P\n' | LC_ALL=C sort); }
strangers=$(LC_ALL=C comm -13 <(listed) <(present))
[ -z "$strangers" ] || stop 2 "Not of this wheelhouse, and pip might take it: ${strangers//$'\n'/, }. Remove it."
echo "Checking SHA256SUMS"
wrong=$(cd "$here" && sha256sum --check --quiet --strict SHA256SUMS 2>&1) ||
    stop 2 "$wrong"$'\n'"The wheelhouse did not arrive whole. Copy it again."

# ---- this machine

[ "$(uname -m)" = "${fact[machine]}" ] || stop 2 "This machine is $(uname -m), the wheelhouse is for ${fact[machine]}."
glibc=$(getconf GNU_LIBC_VERSION 2>/dev/null || true)
glibc=${glibc#glibc }
[ "$(printf '%s\n' "${fact[glibc]}" "${glibc:-0}" | sort --version-sort | head -n 1)" = "${fact[glibc]}" ] ||
    stop 2 "The C library here is ${glibc:-not the GNU one}, the wheelhouse needs ${fact[glibc]}: make it with --glibc"

version_of() { "$1" -c 'import sys, venv; print("%d.%d" % sys.version_info[:2])' 2>/dev/null; }
candidates=("python${fact[python]}" python3 python)
[ -z "$wanted_python" ] || candidates=("$wanted_python")
[ ! -f "$venv/pyvenv.cfg" ] || candidates=("$venv/bin/python")
seen=''
for python in "${candidates[@]}"; do
    version=$(version_of "$python" || true)
    [ "$version" != "${fact[python]}" ] || break
    seen+="${seen:+, }$python is ${version:-not there}"
    python=''
done
if [ -z "$python" ] && [ -z "$wanted_python" ] && [ ! -f "$venv/pyvenv.cfg" ]; then # perhaps one that uv installed
    python=$(UV_OFFLINE=1 uv python find --no-config "${fact[python]}" 2>/dev/null || true)
    [ -z "$python" ] || [ "$(version_of "$python" || true)" = "${fact[python]}" ] || python=''
fi
[ -n "$python" ] || stop 2 "The wheelhouse is for Python ${fact[python]}; $seen.
Load the cluster's module of Python ${fact[python]}, name one with --python, or make the wheelhouse for another."
echo "Python: $python"

if [ -n "$horovod" ]; then
    for tool in "${CXX:-g++}" make; do
        command -v "$tool" >/dev/null ||
            stop 2 "No $tool, which Horovod's build needs. Load the cluster's compiler module, or add --no-horovod."
    done
fi

# ---- the commands

# pip takes several folders with spaces between, so the one that it is told has none.
work=$(mktemp -d)
case $work in *[[:space:]]*) rmdir "$work" && work=$(TMPDIR=/tmp mktemp -d) ;; esac
trap 'rm -rf "$work"' EXIT
ln -s "$here" "$work/wheelhouse"

# Packages of a PYTHONPATH, which modules set, would count as installed, and would hide those of the environment.
[ -z "${PYTHONPATH:-}" ] || echo "PYTHONPATH is set aside; unset it for the package too: $PYTHONPATH"
unset PYTHONPATH PYTHONHOME "${!PIP_@}"
export PIP_CONFIG_FILE=/dev/null PIP_NO_INDEX=1 PIP_FIND_LINKS=$work/wheelhouse/wheels PYTHONNOUSERSITE=1

# The pip that came along installs itself, so neither the Python's nor uv is needed.
own_pip=("$here"/wheels/pip-*.whl)
create=("$python" -m venv --without-pip "$venv")
bootstrap=("$venv/bin/python" "${own_pip[0]}/pip" install --quiet pip)
package="bloodcell-dist${fact[extras]:+[${fact[extras]}]}==${fact[release]}"
install=("$venv/bin/python" -m pip install --quiet --constraint "$here/constraints.txt" "$package")
build=(env "HOROVOD_SOURCE=$here/horovod-${fact[horovod]}.tar.gz" "$here/scripts/install_horovod.sh" "$venv/bin/python")

if [ -n "$dry_run" ]; then
    show() { printf '%q ' "$@" && echo; }
    [ -f "$venv/pyvenv.cfg" ] || show "${create[@]}"
    show "${bootstrap[@]}"
    show "${install[@]}"
    [ -z "$horovod" ] || show "${build[@]}"
    exit
fi

# ---- installing

[ -f "$venv/pyvenv.cfg" ] || "${create[@]}" || stop 1 "The environment was not made."
"${bootstrap[@]}" || stop 1 "pip was not installed in $venv."
echo "Installing $package (minutes)"
"${install[@]}" || stop 1 "The package was not installed in $venv."
if [ -n "$horovod" ]; then
    "${build[@]}" || stop 1 "The package is installed in $venv, Horovod is not; the same command tries again."
fi

packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo
echo "Installed. Try:"
printf '    %q --version\n    %q doctor\n' "$venv/bin/bloodcell-dist" "$venv/bin/bloodcell-dist"
echo "The batch scripts and configurations, to be copied to where you work:"
printf '    cp -r %q %q .\n' "$packages/bloodcell_dist/slurm" "$packages/bloodcell_dist/configs"
