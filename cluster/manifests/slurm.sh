#!/bin/bash
# One sweep (or experiment) on the nodes of a Slurm job. From a folder that all nodes see, with
# fedarena on the PATH:
#   sbatch cluster/manifests/slurm.sh sweep examples/sweep.yaml seeds=5
# Submit the same line again after a time limit, and it goes on from its last rounds.
# --exclusive is needed: symmetric-run ends with `ray stop`, which ends every Ray of yours on a node.
#SBATCH --job-name=fedarena
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --time=12:00:00
#SBATCH --output=fedarena-%j.log
set -euo pipefail

if [[ "${1:-}" != run && "${1:-}" != sweep && "${1:-}" != resume ]]; then
    echo "usage: sbatch slurm.sh run|sweep|resume FILE [settings]" >&2
    exit 2
fi
: "${SLURM_JOB_ID:?start this with sbatch}"

secret="$PWD/.fedarena-$SLURM_JOB_ID.token"
status="$PWD/.fedarena-$SLURM_JOB_ID.status"
trap 'rm -f "$secret" "$status"' EXIT
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' >"$secret")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$secret" RAY_USAGE_STATS_ENABLED=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
head_ip=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
address="$head_ip:$((20000 + SLURM_JOB_ID % 20000))"

# symmetric-run exits with 0 even where Ray did not start, so the command's own status is kept; and
# it tells the command no address, without which fedarena would start a cluster of its own.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" \
    ray symmetric-run --address "$address" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --include-dashboard=false -- \
    bash -c 'RAY_ADDRESS="$1" fedarena "${@:3}"; code=$?; echo "$code" >"$2"; exit "$code"' \
    fedarena "$address" "$status" "$@" || true

if [[ ! -s "$status" ]]; then
    echo "the Ray head at $address, or one of its nodes, did not come up: see above" >&2
    exit 1
fi
exit "$(cat "$status")"
