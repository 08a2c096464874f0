#!/usr/bin/env bash
# Measure everything that needs a GPU (or TPU), in one call. A failed measurement does not stop the others.
#
#     bash scripts/benchmark/gpu_day.sh OUT [--idx-dir FOLDER]
#
# Writes OUT/NAME.log for each measurement, OUT/*.json and OUT/summary.txt. With QUICK=1, all runs are
# short, for a rehearsal on a CPU.
set -uo pipefail
out=$(realpath -m "$1")
shift
data=()
[ "$#" = 0 ] || data=(--idx-dir "$(realpath "$2")")
mkdir -p "$out"
cd "$(dirname "$0")/../.."
export PYTHONUNBUFFERED=1
# Several processes share the device.
export XLA_PYTHON_CLIENT_PREALLOCATE=false

short=() rounds=3 seeds=1,8,64,256 many=100
if [ -n "${QUICK:-}" ]; then
  short=(--epochs 2 --limit-train 2560) rounds=1 seeds=1,2 many=2
fi

try() { # NAME SECONDS COMMAND ...: runs a command; its output and status go to files
  local name=$1 begin=$SECONDS status
  timeout "$2" "${@:3}" > "$out/$name.log" 2>&1
  status=$?
  printf '%-14s status %3d, %4d s: %s\n' "$name" "$status" "$((SECONDS - begin))" \
    "$(grep '[a-z0-9]' "$out/$name.log" | tail -n 1 | cut -c1-120)" | tee -a "$out/summary.txt"
}
train() { # NAME SECONDS OPTION ...: trains into OUT/run_NAME
  try "$1" "$2" python3 scripts/train.py "${data[@]}" "${short[@]}" --out "$out/run_$1" --overwrite "${@:3}"
}

: > "$out/summary.txt"
nvidia-smi > "$out/nvidia-smi.txt" 2>&1
try device 60 python3 -c "import jax; d = jax.devices()[0]
print(jax.__version__, d.platform, d.device_kind, d.memory_stats())"

# Parity with PyTorch.
try parity 150 python3 -m pytest -q -n0 -m "" tests/test_models.py tests/test_layers.py \
  tests/test_layers_parity.py tests/test_augment.py

# Whole runs; the second one has compiled programs. Then the same bits twice.
train gap 90
train gap_again 60
train fast 60 --recipe fast
for n in 1 2; do
  XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_deterministic_ops=true" train "same_$n" 90 --epochs 2
done
try same_bits 60 python3 -c "import jax, jaxmnist, numpy as np, sys
one, two = (jax.tree.leaves(jaxmnist.load_run(f'{sys.argv[1]}/run_same_{n}').state.params) for n in (1, 2))
print('same bits:', all(map(np.array_equal, one, two)))" "$out"

# Many seeds in one program. Then a run that is killed after its first checkpoints, and continues.
train seeds 150 --seeds "$many"
killed=(scripts/train.py "${data[@]}" "${short[@]}" --seeds 8 --out "$out/run_killed" --checkpoint-every 1s)
python3 "${killed[@]}" > "$out/killed.log" 2>&1 &
for _ in $(seq 120); do
  sleep 1
  if compgen -G "$out/run_killed/checkpoints/seed*/[1-9]*/_CHECKPOINT_METADATA" > /dev/null; then break; fi
done
pkill -KILL -f "$out/run_killed"
wait
try resumed 90 python3 "${killed[@]}" --resume

# Step, augmented step, evaluation and many seeds, beside PyTorch with all its forms on the same device.
bench=(scripts/bench.py --variant gap --rounds "$rounds" "${data[@]}")
try bench 300 python3 "${bench[@]}" --peer pytorch --out "$out/bench.json"
try bench_seeds 200 python3 "${bench[@]}" --seeds "$seeds" --out "$out/bench_seeds.json"
train profile 90 --epochs 1 --profile

# The cost of precise products: the same with JAX's default.
default=$(mktemp -d)
cp -r jaxmnist scripts tests pyproject.toml "$default"
cd "$default" || exit
sed -i 's/^PRECISION = .*/PRECISION = {}/' jaxmnist/models/convolution.py
export PYTHONPATH=$default:${PYTHONPATH:-}
try default_bench 120 python3 "${bench[@]}" --out "$out/default_bench.json"
try default_parity 120 python3 -m pytest -q -n0 tests/test_models.py
rm -r "$default"
