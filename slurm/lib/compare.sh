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
# shellcheck source=job.sh
. "$here/lib/job.sh"

bloodcell_run bloodcell-dist sweep report "$1"
