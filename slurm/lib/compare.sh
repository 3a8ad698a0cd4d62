#!/usr/bin/env bash
# sbatch slurm/lib/compare.sh SWEEP_FOLDER
#
# Writes the comparison of a sweep, as slurm/sweep.sh submits it for when the members have ended.
#SBATCH --job-name=bloodcell-compare
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --time=00:30:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

here=${BLOODCELL_SLURM:-$(dirname "$0")/..}
if [ ! -f "$here/lib/job.sh" ]; then # Slurm runs a copy of this file, and knows where the original is
    here=$(scontrol show job "$SLURM_JOB_ID" | sed -n '/ Command=/{s|.* Command=||;s|/[^/]*\.sh.*||p;q}')/..
    here=$(cd "$SLURM_SUBMIT_DIR" && cd "$here" && pwd)
fi
# shellcheck source=job.sh
. "$here/lib/job.sh" || { echo "$here/lib/job.sh is missing: keep copies in slurm/, or set BLOODCELL_SLURM" >&2; exit 2; }

bloodcell_run bloodcell-dist sweep report "$1"
