#!/bin/bash
# An array job of Slurm that asks about an archive, one shard a task:
#
#   sbatch --array=1-64 deploy/slurm/naturelm-array.sh infer --manifest manifest.csv \
#       --query "Which frog calls?" --output-path answers/frogs.jsonl --quiet
#
# The arguments are those of `naturelm infer`, `survey` or `embed`; --shard is added. A task that is
# stopped at its time limit, preempted or lost with its node is queued again and goes on where it was.
#
# NATURELM         the program, such as /opt/naturelm/bin/naturelm; naturelm by default
# NATURELM_SHARDS  how many shards there are, where the array holds some of them only:
#                  NATURELM_SHARDS=64 sbatch --array=3,17 deploy/slurm/naturelm-array.sh ...
#
#SBATCH --job-name=naturelm
#SBATCH --output=naturelm-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gpus=1
#SBATCH --mem=32G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@180

set -u
if [ $# = 0 ] || [ -z "${SLURM_ARRAY_TASK_ID:-}" ]; then
    echo "sbatch --array=1-N $0 infer --manifest LIST ..." >&2
    exit 2
fi
shard="$SLURM_ARRAY_TASK_ID/${NATURELM_SHARDS:-$SLURM_ARRAY_TASK_COUNT}"
echo "$(date '+%F %T') $(hostname): shard $shard, start ${SLURM_RESTART_COUNT:-0}"

is_stopped=""
"${NATURELM:-naturelm}" "$@" --shard "$shard" &
program=$!
# The signal comes three minutes before the time is up; the program ends with whole lines.
trap 'is_stopped=yes; kill -TERM "$program" 2>/dev/null' TERM
wait "$program"
code=$?
while kill -0 "$program" 2>/dev/null; do # the signal ended the wait, not yet the program
    wait "$program"
    code=$?
done

if [ "$code" -gt 128 ] && [ -n "$is_stopped" ]; then
    echo "$(date '+%F %T') shard $shard: stopped, and queued again"
    scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    exit "$code"
fi
if [ "$code" = 3 ]; then
    echo "shard $shard: some recordings could not be read; their rows say why"
    exit 0 # queued again, they would fail again
fi
exit "$code"
