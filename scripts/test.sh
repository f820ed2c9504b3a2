#!/usr/bin/env bash
# Installs into .venv, then runs the linters and all tests. Arguments (options such as -rs) go to
# pytest. Test files run two at a time, the longest first, but those of the launchers, which start
# clusters and keep the standard streams to themselves. With --fast, for the person who edits: under
# 90 seconds, without the tests that run commands and those of tests/slow_tests.txt.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" test,ray,slurm,dp,optuna,tensorboard,wandb
.venv/bin/ruff check .
.venv/bin/ruff format --check .
status=0
.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
  --ignore tests/cli/test_launchers.py "$@" || status=1
if [[ " $* " != *" --fast "* ]]; then
  .venv/bin/python -m pytest tests/cli/test_launchers.py "$@" || status=1
fi
exit $status
