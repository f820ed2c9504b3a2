#!/usr/bin/env bash
# What only a machine with a CUDA device can tell: its tests, then one small grid timed per norm
# and batch size (column train_time_s of runs.csv). Uses the Python that is active.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
"$python" -m pytest tests -k "cuda or gpu" -rs -p no:cacheprovider
"$python" -m gnexp train -m norm=bn,gn,ln,in batch=1,8,64 model=resnet20 epochs=1 \
  data.train_limit=5120 gradients=0 device=cuda study=gpu-check out="${OUT:-results}"
"$python" - "${OUT:-results}/gpu-check/report/runs.csv" <<'PY'
import sys
import pandas as pd
runs = pd.read_csv(sys.argv[1])
runs["images_per_s"] = runs.examples_seen / runs.train_time_s
print(runs.pivot_table(index="norm", columns="batch", values="images_per_s").round(0).to_string())
PY
