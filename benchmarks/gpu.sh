#!/usr/bin/env bash
# Whatever still lacks a figure from a GPU, in about ten minutes; JSON goes to the folder given, else to $OUT, else here.
#
#   bash benchmarks/gpu.sh results-h200
#
# Nothing is installed: torch, DeepSpeed, webdataset and simplejpeg must be there (`make install`, or wheels on the path).
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
out=${1:-${OUT:-benchmarks/results}}
mkdir -p "$out"
python=${PYTHON:-python3}

one() { # one NAME SECONDS COMMAND...: never lets one failure or one slow line take the others along
    local name=$1 limit=$2
    shift 2
    echo "== $name: $*"
    timeout "$limit" "$@" || echo "== $name ended with $?"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/gpu.txt"
one attention-tests 150 "$python" -m pytest -q -m gpu tests/masking
one attention 150 "$python" benchmarks/attention.py --quick --out "$out/attention-gpu.json"
one illama-step 120 "$python" benchmarks/illama_step.py --out "$out/illama-step-gpu.json"
one step 100 "$python" benchmarks/step.py --batch 64 256 --out "$out/step-gpu.json"
one decoder 45 "$python" benchmarks/decoder.py --device cuda --out "$out/decoder-gpu.json"
one masks 45 "$python" benchmarks/masks.py --out "$out/masks-gpu.json"
one train 60 "$python" -m launch train configs/mae_tiny64.py data.train=embedded data.val=none epochs=none steps=200 \
    runs_dir="$out/runs" name=gpu engine.compile=false tracking.wandb=off
cp "$out/runs/gpu/metrics.jsonl" "$out/train-gpu-metrics.jsonl" 2> /dev/null
one step-compiled 120 "$python" benchmarks/step.py --batch 256 --compile --out "$out/step-gpu-b256-compiled.json"
one step-large 100 "$python" benchmarks/step.py --model large --batch 256 --out "$out/step-gpu-large.json"
