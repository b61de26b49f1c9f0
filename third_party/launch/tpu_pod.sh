#!/usr/bin/env bash
# :8b_tpu on a slice v5p:2x2x2 (eight chips, two hosts), which this makes. Learner and servers share it.
#
#   ZONE=us-east5-a NFS=10.0.0.2:/share third_party/launch/tpu_pod.sh
#
# Every host of the slice: one process, which has all four chips: two for the learner, two for an embedded server that
# this host asks and updates. JAX finds the other host by itself. NFS is what both mount as /shared: paravt_jax/ (the
# checkout, which gets its .venv), model/, media/, rows/, runs/. The same command continues a run that has ended. The
# slice stays until `gcloud compute tpus tpu-vm delete paravt`.
set -euo pipefail
: "${ZONE:?a zone that has v5p, as us-east5-a}" "${NFS:?a share, as 10.0.0.2:/share}"
name=${NAME:-paravt}

run() {  # run WORKER COMMAND
  gcloud compute tpus tpu-vm ssh "$name" --zone="$ZONE" --worker="$1" --command="$2"
}

gcloud compute tpus tpu-vm describe "$name" --zone="$ZONE" >/dev/null 2>&1 ||
  gcloud compute tpus tpu-vm create "$name" --zone="$ZONE" --accelerator-type=v5p-16 --version=v2-alpha-tpuv5
run all "sudo apt-get install -y make nfs-common python3.11-venv && sudo mkdir -p /shared && { mountpoint -q /shared || sudo mount -t nfs $NFS /shared; }"
run 0 "cd /shared/paravt_jax && make setup ACCELERATOR=tpu"
run all "cd /shared/paravt_jax && .venv/bin/python -m experiments.rl --config=configs/para_grpo.py:8b_tpu \
  --config.model.folder=/shared/model --config.data.media_root=/shared/media \
  --config.data.train=\"('/shared/rows/paravt_rl_*.parquet',)\" --config.run.folder=/shared/runs/para_grpo_8b_tpu"
