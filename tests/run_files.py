"""The files of trained runs, read without gnexp's own readers."""

import csv
import json
from pathlib import Path


def runs(study="results/main"):
    """Return the folders of a study's runs, sorted by name."""
    return sorted(p for p in Path(study).iterdir() if (p / "config.yaml").exists())


def only_run(study="results/main"):
    (folder,) = runs(study)
    return folder


def table(path):
    with open(path) as file:
        return list(csv.DictReader(file))


def epochs(folder):
    """Return the rows of metrics.csv, but for the time that they took."""
    return [
        {k: v for k, v in row.items() if k != "time_s"} for row in table(folder / "metrics.csv")
    ]


def seeds(folder):
    """Return the final numbers by seed."""
    return json.loads((folder / "result.json").read_text())["seeds"]
