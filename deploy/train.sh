#!/usr/bin/env bash
# Starts a run on the Ray cluster of this node, or goes on with it when its folder already holds one: the command of
# everything that is started again after a crash (a requeued SLURM job, a preempted cluster, a retried RayJob).
#   deploy/train.sh NAME RUNS RECIPE [--set KEY=VALUE ...]
# RUNS must be on storage that outlives the cluster. The settings count at the first start; a continued run has its own.
set -euo pipefail
name=$1 runs=$2 recipe=$3
shift 3
common=(--runs "$runs" --address auto --no-view --no-resource-check)
if [ -f "$runs/$name/config.json" ] && [ -d "$runs/$name/state" ]; then
  exec braid train --resume "$name" "${common[@]}"
fi
exec braid train "$recipe" --name "$name" "${common[@]}" "$@"
