#!/usr/bin/env bash
# Installs into .venv, then runs the linters and all tests. Arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh" test,ray,slurm,dp
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python -m pytest "$@"
