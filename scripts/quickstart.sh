#!/usr/bin/env bash
# From a fresh clone to an answered study: installs into .venv, then trains a small grid on the
# embedded images and names the report.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
.venv/bin/gnexp train experiment=smoke
