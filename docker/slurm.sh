#!/bin/bash
# A build as a Slurm array, one task a share, and a last job that makes them one manifest. From the project's folder:
#   bash docker/shares.sh cut /shared/photos /shared/data/patches.parquet 16
#   array=$(sbatch --parsable --array=0-15 docker/slurm.sh /shared/photos /shared/data/patches.parquet)
#   sbatch --dependency=afterok:$array docker/slurm.sh /shared/photos /shared/data/patches.parquet
#SBATCH --job-name=la-sr
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=12:00:00
#SBATCH --output=%x-%A-%a.log
##SBATCH --gres=gpu:1
set -euo pipefail

photos=$1 out=$2
shift 2
set -- "$@" --workers "$SLURM_CPUS_PER_TASK"
cd "$SLURM_SUBMIT_DIR" # Slurm runs a copy of this file
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
    exec bash docker/shares.sh build "$photos" "$out" "$SLURM_ARRAY_TASK_ID" "$@"
else
    exec bash docker/shares.sh combine "$photos" "$out" "$@"
fi
