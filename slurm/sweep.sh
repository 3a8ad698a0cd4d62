#!/usr/bin/env bash
# sbatch slurm/sweep.sh [SWEEP.yaml] [--out DIR] [--set KEY=VALUE ...]
#
# The six backbones by their recipes (configs/sweep.yaml), two at a time, then a job that compares them. All of it lies in
# sweeps/backbones/, the table is comparison.html. Another sweep: sbatch --array=0-11%4 slurm/sweep.sh mine.yaml; `bloodcell-dist
# sweep submit` counts by itself. Site settings: slurm/site.env. Docs: docs/cluster.md. Not measured on GPUs.
#SBATCH --job-name=bloodcell-sweep
#SBATCH --array=0-5%2
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log

here=${BLOODCELL_SLURM:-$(dirname "$0")}
if [ ! -f "$here/lib/job.sh" ]; then # Slurm runs a copy of this file, and knows where the original is
    here=$(scontrol show job "$SLURM_JOB_ID" | sed -n '/ Command=/{s|.* Command=||;s|/[^/]*\.sh.*||p;q}')
    here=$(cd "$SLURM_SUBMIT_DIR" && cd "$here" && pwd)
fi
# shellcheck source=job.sh
. "$here/lib/job.sh" || { echo "$here/lib/job.sh is missing: keep copies in slurm/, or set BLOODCELL_SLURM" >&2; exit 2; }
# shellcheck source=member.sh
. "$here/lib/member.sh"

case ${1:--} in -*) set -- "$configs/sweep.yaml" "$@" ;; esac
sweep=$(bloodcell_run bloodcell-dist sweep plan "$@")
compare_afterwards "$sweep"
train_member "$sweep" "$SLURM_ARRAY_TASK_ID"
