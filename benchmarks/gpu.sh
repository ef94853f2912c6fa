#!/usr/bin/env bash
# Every figure from a GPU, those that are still wanted first; JSON goes to the folder given, else to $OUT, else here.
#
#   bash benchmarks/gpu.sh results-h200                    everything, about twenty minutes
#   bash benchmarks/gpu.sh results-h200 attention step     these alone
#
# Nothing is installed: torch, DeepSpeed, webdataset and simplejpeg must be there (`make install`, or wheels on the path).
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
out=${1:-${OUT:-benchmarks/results}}
shift
mkdir -p "$out"
python=${PYTHON:-python3}
wanted=" ${*:-all} "

one() { # one NAME SECONDS COMMAND...: never lets one failure or one slow line take the others along
    local name=$1 limit=$2 began=$SECONDS
    shift 2
    [[ $wanted == " all " || $wanted == *" $name "* ]] || return 0
    echo "== $name: $*"
    timeout "$limit" "$@" || echo "== $name ended with $?"
    echo "== $name took $((SECONDS - began)) s"
}

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | tee "$out/gpu.txt"
one illama-step 120 "$python" benchmarks/illama_step.py --case supervised --precision bf16 --alpha 0.37 --compile ours \
    --rounds 5 --out "$out/illama-step-gpu.json"
one recap 240 "$python" benchmarks/recap.py --out "$out/recap-gpu.json"
one objectives-compiled 240 "$python" benchmarks/objectives.py --precision bf16 --rounds 10 --compile \
    --out "$out/objectives-gpu-compiled.json"
one step 100 "$python" benchmarks/step.py --batch 64 256 --out "$out/step-gpu.json"
one step-compiled 120 "$python" benchmarks/step.py --batch 256 --compile --out "$out/step-gpu-b256-compiled.json"
one step-large 100 "$python" benchmarks/step.py --model large --batch 256 --out "$out/step-gpu-large.json"
one masks 45 "$python" benchmarks/masks.py --out "$out/masks-gpu.json"
one train 60 "$python" -m launch train configs/mae_tiny64.py data.train=embedded data.val=none epochs=none steps=200 \
    runs_dir="$out/runs" name=gpu engine.compile=false tracking.wandb=off
one attention-tests 100 "$python" -m pytest -q --at-once -m gpu tests/masking
one attention 200 "$python" benchmarks/attention.py --rounds 3 --out "$out/attention-gpu.json"
one objectives 60 "$python" benchmarks/objectives.py --precision bf16 --rounds 10 --out "$out/objectives-gpu.json"
one sanitizer 60 compute-sanitizer --error-exitcode 9 "$python" -m pytest -q -m gpu tests/masking -k two_runs
one decoder 45 "$python" benchmarks/decoder.py --device cuda --out "$out/decoder-gpu.json"
one attention-blocks 120 "$python" benchmarks/attention_blocks.py --out "$out/attention-blocks.json"
