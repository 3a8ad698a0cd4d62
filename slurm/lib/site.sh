# shellcheck shell=bash
# Where a batch script runs: the site's settings, the job, and the Python that has bloodcell_dist.
#
#     bloodcell_run COMMAND...      one process in the environment that site.env names
#     $configs                      the folder with the recipes
#     $job                          the job's number for scontrol and scancel

slurm_folder=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck disable=SC2034 # for the scripts that source this
configs=$(dirname "$slurm_folder")/configs

say() { printf '%s bloodcell: %s\n' "$(date +%Y-%m-%dT%H:%M:%S)" "$*"; }

read_site() { # settings of the site; those in the environment win
    local file=${BLOODCELL_SITE:-$slurm_folder/site.env} name
    [ -f "$file" ] || return 0
    local -A given=()
    for name in $(compgen -e | grep -E '^(BLOODCELL|SBATCH)_'); do given[$name]=${!name}; done
    set -a +eu # it is not written for them, nor are modules
    # shellcheck source=/dev/null
    . "$file"
    set +a -eu
    for name in "${!given[@]}"; do export "$name=${given[$name]}"; done
}
read_site

# `bash slurm/train_….sh` outside a job submits it, with the account and the partition of site.env.
if [ -z "${SLURM_JOB_ID:-}" ]; then
    command -v sbatch >/dev/null || {
        echo "There is no sbatch here. On one machine: bloodcell-dist train --config configs/….yaml" >&2
        exit 2
    }
    exec sbatch "$0" "$@"
fi

# In `scontrol` and `scancel`, the number of an array's first task stands for all of them.
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
job=${job:-$SLURM_JOB_ID}

in_environment=() # what begins every command
bloodcell_run() { ${in_environment[@]+"${in_environment[@]}"} "$@"; }

enter_environment() {
    if [ "$(type -t site_setup)" = function ]; then
        set +eu
        site_setup # module load …
        set -eu
    fi
    if [ -n "${BLOODCELL_CONTAINER:-}" ]; then
        local options
        read -ra options <<<"${BLOODCELL_CONTAINER_OPTIONS:-}"
        in_environment=(apptainer exec --nv ${options[@]+"${options[@]}"} "$BLOODCELL_CONTAINER")
    else
        local venv=${BLOODCELL_VENV:-$(dirname "$slurm_folder")/.venv}
        [ ! -d "$venv/bin" ] || export PATH="$venv/bin:$PATH" VIRTUAL_ENV="$venv"
    fi
    bloodcell_run python -c 'import bloodcell_dist' && return
    say "no Python with bloodcell_dist on $(hostname): set BLOODCELL_VENV or BLOODCELL_CONTAINER in $slurm_folder/site.env"
    [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || end_failed 3 # it was there before, so this node lacks a mount
    exit 2
}
