# Sourced by the other scripts: makes .venv in the repository and installs gnexp as it was tested.
# Usage: source scripts/venv.sh [EXTRA]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:+[$1]}
python=${PYTHON:-python3}

"$python" - <<'PY' || { echo "gnexp needs Python 3.11 to 3.13; name one with PYTHON=..." >&2; exit 1; }
import sys
sys.exit(not (3, 11) <= sys.version_info < (3, 14))
PY
[ -x .venv/bin/python ] || "$python" -m venv .venv
# The stamp holds what was installed, so a second call starts at once.
stamp=".venv/installed$extra"
if ! cat pyproject.toml constraints.txt | cmp -s - "$stamp"; then
  echo "installing gnexp and PyTorch into .venv (a few minutes the first time)"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt --editable ".$extra"
  cat pyproject.toml constraints.txt > "$stamp"
fi
