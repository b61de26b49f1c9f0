#!/usr/bin/env bash
# SGLang servers on this machine's GPUs, one each, and the router in front of them, until it is stopped.
#
#   servers.sh MODEL ADDRESS [SERVERS]
#
# MODEL: the Hugging Face folder that the learner starts from. ADDRESS: this machine, as the learner and the router
# reach it. The router listens on port 30000, server n on 30001 + n. The learner needs the router alone:
# --config.server.router=http://ADDRESS:30000. A server that ends is started again; the run gives it its weights.
set -euo pipefail
model=$1 address=$2 servers=${3:-8}
root=$(cd "$(dirname "$0")/../.." && pwd)
python=$root/.venv-sglang/bin/python

# third_party/sglang/README.md has the reason of each setting. Image features may be cached while the vision tower is
# frozen, as it is in :8b.
export SGLANG_VLM_CACHE_SIZE_MB=1024 SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION=0
export SGLANG_EXTERNAL_MODEL_PACKAGE=published_order HF_HUB_OFFLINE=1 OMP_NUM_THREADS=8
export NO_PROXY=127.0.0.1,localhost,$address no_proxy=127.0.0.1,localhost,$address

serve() {
  while true; do
    CUDA_VISIBLE_DEVICES=$1 "$python" "$root/third_party/sglang/launch_gpu.py" --parent-pid $$ \
      --model-path "$model" --served-model-name para_grpo --host 0.0.0.0 --port $((30001 + $1)) --device cuda \
      --dtype bfloat16 --context-length 32770 --max-total-tokens 262144 --max-running-requests 64 \
      --mem-fraction-static 0.8 --tensor-parallel-size 1 --enable-fp32-lm-head || echo "server $1 ended; it starts again"
    sleep 5
  done
}

trap 'trap - TERM; kill 0' EXIT
urls=()
for ((n = 0; n < servers; n++)); do
  serve "$n" &
  urls+=("http://$address:$((30001 + n))")
done
for url in "${urls[@]}"; do
  until "$python" -c "from urllib import request; request.urlopen('$url/health', timeout=5)" 2>/dev/null; do sleep 2; done
done
"$python" -m smg launch --host 0.0.0.0 --port 30000 --prometheus-host 127.0.0.1 --policy manual \
  --assignment-mode min_load --max-buffered-request-bytes 0 --worker-urls "${urls[@]}"
