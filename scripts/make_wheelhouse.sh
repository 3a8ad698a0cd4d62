#!/usr/bin/env bash
# Makes one folder that holds all that a cluster without internet needs: it is copied there, and its install.sh run.
#
# Measured with 2 cores, downloads from near: gpu 2.7 GB, made in 48 s, installed in 3 min, of which Horovod with Gloo
# took 2, to 5.6 GB; none 0.9 GB, 24 s, 2 min, 2.7 GB. Installed without any network, with Python 3.11 and 3.12.
# Not tried: on a machine with GPUs, Horovod with NCCL or MPI, a C library older than the one here (2.36).
usage="scripts/make_wheelhouse.sh [--extras LIST] [--python PYTHON] [--glibc X.Y] [--tar] [--dry-run] [FOLDER]

FOLDER           what to make; without it bloodcell-wheelhouse, in the working folder
--extras LIST    extras of setup.cfg, with commas between; without it gpu (TensorFlow's CUDA libraries), or none
--python PYTHON  the Python to make it for, 3.11 or 3.12: the cluster's has to be of the same version
--glibc X.Y      the oldest C library it shall suit; on the cluster, getconf GNU_LIBC_VERSION tells its. Without it
                 2.28, of RHEL 8; for an older one there are not all wheels
--tar            pack the folder into FOLDER.tar too
--dry-run        print what would be done, and change nothing

It needs internet and a machine of the cluster's kind (Linux, the same uname -m); neither a GPU nor a compiler.
Exit status: 0 made; 1 a download or a build failed; 2 something is missing, and the message says what."
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

stop() { # STATUS MESSAGE
    echo "$2" >&2
    exit "$1"
}

# ---- what is asked for

folder='' extras=gpu wanted_python='' glibc=2.28 tar='' dry_run=''
while [ "$#" -gt 0 ]; do
    case $1 in
    --extras | --python | --glibc)
        [ -n "${2:-}" ] || stop 2 "$1 needs a value. Usage: ${usage%%$'\n'*}"
        case $1 in
        --extras) extras=$2 ;;
        --python) wanted_python=$2 ;;
        --glibc) glibc=$2 ;;
        esac
        shift
        ;;
    --tar) tar=yes ;;
    --dry-run) dry_run=yes ;;
    -h | --help) echo "$usage" && exit ;;
    -*) stop 2 "Unknown option $1. Usage: ${usage%%$'\n'*}" ;;
    *)
        [ -z "$folder" ] || stop 2 "One FOLDER, not two: $folder, $1"
        folder=$1
        ;;
    esac
    shift
done
folder=${folder:-bloodcell-wheelhouse}
folder=${folder%/}
case $folder in /*) ;; *) folder=$PWD/$folder ;; esac
[ -d "$(dirname "$folder")" ] || stop 2 "There is no folder $(dirname "$folder")."
for made in "$folder" ${tar:+"$folder.tar"}; do
    [ ! -e "$made" ] || stop 2 "$made is there already. Remove it, or name another FOLDER."
done
[[ $glibc =~ ^2\.[0-9]+$ ]] || stop 2 "--glibc $glibc is no version of the GNU C library; RHEL 8, for one, has 2.28."

[ "$extras" != none ] || extras=''
known=$(sed -n '/^\[options.extras_require\]/,/^\[/{/^horovod/d;s/^\([a-z]*\) =$/\1/p}' "$root/setup.cfg")
for extra in ${extras//,/ }; do
    [ "$extra" != horovod ] || stop 2 "Horovod's source always comes along, and install.sh builds it: no extra for it."
    grep -qx -- "$extra" <<<"$known" || stop 2 "There is no extra $extra; there are: none, ${known//$'\n'/, }."
done

# ---- Python, and the C library

suits='import sys; assert (3, 11) <= sys.version_info < (3, 13); print(sys.executable)'
candidates=(python3.11 python3.12 python3 python)
[ -z "$wanted_python" ] || candidates=("$wanted_python")
for python in "${candidates[@]}"; do
    python=$("$python" -c "$suits" 2>/dev/null) && break || python=''
done
[ -n "$python" ] ||
    stop 2 "No Python 3.11 or 3.12 among: ${candidates[*]}. Name the cluster's version: --python /path/to/python3.12"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
environment=("$python" -m venv)
if ! "$python" -c 'import ensurepip' 2>/dev/null; then # Debian's without python3-venv
    uv --version >/dev/null 2>&1 ||
        stop 2 "$python cannot make an environment with pip. Install python3-venv (Debian, Ubuntu) or uv."
    environment=(uv --quiet venv --seed --python "$python")
fi

here=$(getconf GNU_LIBC_VERSION 2>/dev/null) || stop 2 "This needs Linux with the GNU C library, as the cluster has."
here=${here#glibc }
oldest() { printf '%s\n' "$@" | sort --version-sort | head -n 1; }
glibc=$(oldest "$glibc" "$here")
release=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$root/bloodcell_dist/__init__.py")
horovod=$(sed -n 's/^version=//p' "$root/scripts/install_horovod.sh")
echo "Python: $python ($version)"
echo "For: bloodcell-dist $release${extras:+, extras $extras}, Horovod $horovod; $(uname -m), C library from $glibc on"

# ---- the commands

work=$(mktemp -d)
partial=''
trap 'rm -rf "$work" ${partial:+"$partial"}' EXIT
[ -n "$dry_run" ] || partial=$(mktemp -d "$(dirname "$folder")/.wheelhouse-XXXXXX") # renamed when whole
made=${partial:-$work}/$(basename "$folder")

pip=("$work/env/bin/python" -m pip --disable-pip-version-check)
# pip wheel, not download: promise, of TensorFlow Datasets, has no wheel, and is made into one, of Python only. Others
# would be compiled, for this machine's C library and for hours, so the lack of a wheel is an error.
own=("${pip[@]}" wheel --no-deps --wheel-dir "$made/wheels" "$work/source")
all=("${pip[@]}" wheel --wheel-dir "$made/wheels" --constraint "$root/constraints.txt"
    --only-binary :all: --no-binary promise
    "$made/wheels/bloodcell_dist-$release-py3-none-any.whl${extras:+[$extras]}"
    # What install_horovod.sh asks for; pip itself too, because not every Python can make an environment with it.
    pip 'setuptools<80' wheel packaging cloudpickle psutil pyyaml 'cmake>=3.13,<4')
source=("${pip[@]}" download --no-deps --no-binary horovod --dest "$made" "horovod==$horovod")

if [ -n "$dry_run" ]; then
    show() { printf '%q ' "$@" && echo; }
    show "${environment[@]}" "$work/env"
    show "${own[@]}"
    show "${all[@]}"
    show "${source[@]}"
    echo "To be made: $folder${tar:+, $folder.tar}"
    exit
fi

# ---- downloads

log=$(mktemp "${TMPDIR:-/tmp}/wheelhouse-XXXXXX.log") hint=''
try() { # WHAT COMMAND...
    local status=0
    echo "$1"
    "${@:2}" >>"$log" 2>&1 || status=$?
    [ "$status" = 0 ] || stop 1 "$(tail -n 15 "$log" | cut -c 1-300)"$'\n'"Above are the last lines of $log$hint"
}

try "Making an environment with pip" "${environment[@]}" "$work/env"
# By this module, pip lets itself be told that the C library is older than it is (PEP 600).
site=$("$work/env/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
cat >"$site/_manylinux.py" <<PYTHON
def manylinux_compatible(major, minor, _arch):
    return (major, minor) <= (${glibc/./, })
PYTHON

mkdir "$work/source" # building leaves folders behind
cp -RP "$root"/{setup.cfg,pyproject.toml,README.md,LICENSE,bloodcell_dist,configs,slurm} "$work/source"
try "Building bloodcell-dist $release" "${own[@]}"
hint=". What pip calls a conflict may be a version without a wheel for Python $version and C library $glibc."
try "Collecting wheels (minutes)" "${all[@]}"
hint=''
try "Collecting Horovod's source" "${source[@]}"

# ---- what goes with them

mkdir "$made/scripts"
cp "$root/scripts/install_horovod.sh" "$made/scripts/"
cp "$root/scripts/install_wheelhouse.sh" "$made/install.sh"
cp "$root/constraints.txt" "$made/"
cat >"$made/wheelhouse.txt" <<FACTS
release=$release
extras=$extras
python=$version
machine=$(uname -m)
glibc=$glibc
horovod=$horovod
FACTS
(cd "$made" && find . -type f -printf '%P\0' | sort -z | xargs -0 sha256sum) >"$work/SHA256SUMS"
cp "$work/SHA256SUMS" "$made/"

if [ -n "$tar" ]; then
    try "Packing $folder.tar" tar -cf "$partial/tar" -C "$partial" -- "$(basename "$folder")"
    mv "$partial/tar" "$folder.tar"
fi
mv -T "$made" "$folder"
rm "$log"
echo "Made: $folder ($(du -sh "$folder" | cut -f 1))${tar:+ and $folder.tar}"
echo "Copy it to the cluster, and there: $(basename "$folder")/install.sh VENV"
