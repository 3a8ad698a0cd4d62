# shellcheck shell=bash
# What a task of a sweep's array does. job.sh comes before it.

# shellcheck disable=SC2154 # slurm_folder is of site.sh
compare_afterwards() { # SWEEP_FOLDER: the first task of an array submits the comparison, once
    [ "$SLURM_ARRAY_TASK_ID" = "$SLURM_ARRAY_TASK_MIN" ] && [ "${SLURM_RESTART_COUNT:-0}" = 0 ] || return 0
    local inherited name same=()
    [ -z "${SLURM_JOB_ACCOUNT:-}" ] || same+=(--account="$SLURM_JOB_ACCOUNT")
    [ -z "${SLURM_JOB_PARTITION:-}" ] || same+=(--partition="$SLURM_JOB_PARTITION")
    [ -z "${SLURM_JOB_QOS:-}" ] || same+=(--qos="$SLURM_JOB_QOS")
    mapfile -t inherited < <(compgen -e | grep -E '^SLURM_' | grep -vx SLURM_CONF) # of this job, not for the next
    for name in "${!inherited[@]}"; do inherited[name]=--unset=${inherited[name]}; done
    BLOODCELL_SLURM=$slurm_folder env "${inherited[@]}" sbatch ${same[@]+"${same[@]}"} --export=ALL \
        --dependency="afterany:$SLURM_ARRAY_JOB_ID" --chdir="$PWD" "$slurm_folder/lib/compare.sh" "$1" ||
        say "the comparison could not be submitted from here; afterwards: bloodcell-dist sweep report '$1'"
}

train_member() { # SWEEP_FOLDER INDEX
    local arguments
    if [ ! -f "$1/arguments/$2" ]; then
        say "there is no member $2 in $1: its array is --array=0-$(($(find "$1/arguments" -type f | wc -l) - 1))"
        exit 2
    fi
    export BLOODCELL_RECORD=$1/jobs/$2
    mapfile -d '' -t arguments <"$1/arguments/$2"
    bloodcell_job "${arguments[@]}"
}
