#!/usr/bin/env bash
# sbatch slurm/train_efficientnetv2s.sh [--set KEY=VALUE ...]
#
# Trains EfficientNetV2S from its ImageNet weights with configs/efficientnetv2s.yaml:
# 1 node with 4 GPUs, a process per GPU.
# Options of sbatch before the file's name win over the lines below; what follows it goes to bloodcell_dist.train.
# Site settings: slurm/site.env. Docs: docs/cluster.md. Not measured on GPUs.
#SBATCH --job-name=bloodcell-efficientnetv2s
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

here=${BLOODCELL_SLURM:-$(dirname "$0")}
if [ ! -f "$here/lib/job.sh" ]; then # Slurm runs a copy of this file, and knows where the original is
    here=$(scontrol show job "$SLURM_JOB_ID" | sed -n '/ Command=/{s|.* Command=||;s|/[^/]*\.sh.*||p;q}')
    here=$(cd "$SLURM_SUBMIT_DIR" && cd "$here" && pwd)
fi
# shellcheck source=job.sh
. "$here/lib/job.sh" || { echo "$here/lib/job.sh is missing: keep copies in slurm/, or set BLOODCELL_SLURM" >&2; exit 2; }

bloodcell_job --config "$configs/efficientnetv2s.yaml" "$@"
