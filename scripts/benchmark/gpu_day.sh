#!/usr/bin/env bash
# Measure everything that needs a GPU (or TPU) in one call of about nine minutes; nothing stops it.
#
#     bash scripts/benchmark/gpu_day.sh OUT [OPTION ...]
#
# Writes OUT/NAME.log for each measurement, OUT/*.json and OUT/summary.txt. The options are passed to
# every command, such as --idx-dir FOLDER on a machine without network. QUICK=1 rehearses it all on a
# CPU, with short runs.
set -uo pipefail
out=$1; shift
data=("$@")
mkdir -p "$out"
export PYTHONUNBUFFERED=1
cd "$(dirname "$0")/../.."

if [ -n "${QUICK:-}" ]; then
  short=(--epochs 1 --limit-train 2560) rounds=1 seeds=1,2 many=2
else
  short=() rounds=3 seeds=1,8,64,256 many=100
fi

try() { # NAME SECONDS COMMAND ...: runs a command; its output and status go to files
  local name=$1 limit=$2 begin=$SECONDS status
  shift 2
  timeout "$limit" "$@" > "$out/$name.log" 2>&1
  status=$?
  printf '%-12s status %3d, %4d s: %s\n' "$name" "$status" "$((SECONDS - begin))" \
    "$(grep -v '^$' "$out/$name.log" | tail -n 1 | cut -c1-120)" | tee -a "$out/summary.txt"
}
train() { # NAME SECONDS OPTION ...: trains into OUT/run_NAME
  try "$1" "$2" python3 scripts/train.py "${data[@]}" "${short[@]}" --out "$out/run_$1" --overwrite "${@:3}"
}

: > "$out/summary.txt"
nvidia-smi > "$out/nvidia-smi.txt" 2>&1
try device 60 python3 -c "import jax; d = jax.devices()[0]
print(jax.__version__, d.platform, d.device_kind, d.memory_stats())"

# Parity with PyTorch.
try parity 150 python3 -m pytest -q -n0 tests/test_models.py tests/test_layers.py \
  tests/test_layers_parity.py tests/test_augment.py -m ""

# Whole runs, the second of each with compiled programs; the same bits twice.
train gap 90
train gap_again 60
train fast 60 --recipe fast
export XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true"
for n in 1 2; do train "same_$n" 90 --epochs 2; done
unset XLA_FLAGS
try same_bits 60 python3 -c "import jax, jaxmnist, numpy as np, sys
one, two = (jax.tree.leaves(jaxmnist.load_run(f'{sys.argv[1]}/run_same_{n}').state.params) for n in (1, 2))
print('same bits:', all(map(np.array_equal, one, two)))" "$out"

# A hundred seeds in one program; a killed run that continues.
train seeds 150 --seeds "$many"
train killed 12 --seeds 8 --checkpoint-every 1s
try resumed 90 python3 scripts/train.py "${data[@]}" "${short[@]}" --seeds 8 \
  --out "$out/run_killed" --resume

# Step, augmented step, evaluation, many seeds, beside PyTorch with all its forms on the same device.
bench=(scripts/bench.py --variant gap --rounds "$rounds" "${data[@]}")
try bench 300 python3 "${bench[@]}" --peer pytorch --out "$out/bench.json"
try bench_seeds 200 python3 "${bench[@]}" --seeds "$seeds" --out "$out/bench_seeds.json"
train profile 90 --epochs 1 --profile

# The cost of the precision of products: the same with JAX's default.
default=$(mktemp -d)
cp -r jaxmnist scripts tests pyproject.toml "$default"
sed -i 's/^PRECISION = .*/PRECISION = {}/' "$default/jaxmnist/models/convolution.py"
(cd "$default" && export PYTHONPATH=$default && {
  try default_bench 120 python3 "${bench[@]}" --out "$out/default_bench.json"
  try default_parity 120 python3 -m pytest -q -n0 tests/test_models.py
})
rm -r "$default"
