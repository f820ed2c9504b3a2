#!/usr/bin/env bash
# What only a machine with a CUDA device can tell: its tests, then how fast a captured step of five
# seeds trains beside a plain PyTorch loop. Uses the Python that is active; about six minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
"$python" -m pytest tests/training/test_cuda.py tests/measure/test_gradient_variance.py tests/measure/test_memory.py \
  -k "cuda or gpu" -rs \
  -p no:cacheprovider
"$python" -m gnexp bench device=cuda seconds=0.4 out="${OUT:-results}" name=bench-gpu
