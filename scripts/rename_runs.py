#!/usr/bin/env python
"""Give the runs of a study the names that this gnexp gives them, and their configs all its keys.

    python scripts/rename_runs.py results/main [MORE STUDIES ...]

For studies that were trained before the rule of names changed. Renames the folders, and the names
in every file of the runs and in tuning.json; numbers stay. A report keeps the old names until it is
made again. Every file gets a digest. Refuses, before the first change, a study that is being
trained or that has a file which is not as it was written. A second call changes nothing.
"""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from gnexp.config.files import norm_defaults
from gnexp.config.identity import as_dict, restore, run_name
from gnexp.config.keys import with_value
from gnexp.store.digests import FILE, Writer
from gnexp.store.files import json_text, read_json, write_whole
from gnexp.store.integrity import changed_files, without_digest
from gnexp.store.locks import lock_owner
from gnexp.store.run import Run, exclusive
from gnexp.store.study import record_of, runs_of

NAME = re.compile(r"[A-Za-z0-9_.-]+-[0-9a-f]{8}(?![0-9a-f])")


def present(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a stored config with every key of this gnexp, and every option of its norm."""
    usual = norm_defaults(stored["norm"]["name"])
    norm = {"name": stored["norm"]["name"], **usual, **stored["norm"]}
    return as_dict(restore({**stored, "norm": norm}))


def name_of(stored: dict[str, Any], run: Run, checksums: dict[str, str]) -> str:
    """Return the name that this gnexp gives a run of this stored config."""
    code = "-".join(run.provenance().get("code", {}).values()) or None
    return run_name(restore(stored), checksums[str(stored["data"])], code)


def new_names(study: Path) -> dict[str, str]:
    """Return {old name: new name} of the runs, and of the cells whose learning rate was chosen."""
    runs = {run.name: run for run in runs_of(study)}
    configs = {name: run.result().get("config") or run.config() for name, run in runs.items()}
    results = {name: run.result() for name, run in runs.items() if run.result()}
    # A run that has no result yet has the images of another one with the same data.
    checksums = {str(r["config"]["data"]): r["data"]["checksum"] for r in results.values()}
    names = {name: name_of(configs[name], run, checksums) for name, run in runs.items()}
    for cell, choice in read_json(study / "tuning.json").get("cells", {}).items():
        stored = with_value(restore(configs[choice["run"]]), "lr", 1.0)
        names[cell] = name_of(as_dict(stored), runs[choice["run"]], checksums)
    if len({*names.values()}) < len(names):
        sys.exit(f"{study}: two runs would have one name")
    return names


def rewrite(path: Path, names: dict[str, str]) -> None:
    """Put the new names into a file of a run or of a study."""
    if path.suffix == ".npz":
        return
    if path.suffix == ".pt":
        states = torch.load(path, map_location="cpu", weights_only=True)
        for state in states.values():
            if "step" in state:
                parts = (member.rpartition("/") for member in state["step"])
                state["step"] = [f"{names.get(run, run)}/{seed}" for run, _, seed in parts]
        buffer = io.BytesIO()
        torch.save(states, buffer)
        write_whole(path, buffer.getvalue())
        return
    text = NAME.sub(lambda found: names.get(found[0], found[0]), path.read_text())
    if path.name == "tuning.json":  # its cells are sorted by name
        text = json_text({"cells": dict(sorted(json.loads(text)["cells"].items()))})
    elif path.name == "result.json":
        result = json.loads(text)
        text = json_text({**result, "config": present(result["config"])})
    elif path.name == "config.yaml":
        config = present(yaml.safe_load(text))
        text = yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=100)
    write_whole(path, text)


def record(folder: Path) -> None:
    """Give every file of a folder the digest that it has now."""
    writer = Writer(folder)
    for name in without_digest(folder):
        writer.record(name)
    writer.close()


def refuse(study: Path, runs: list[Run]) -> None:
    """End the call where a run is being trained, or a file is not as it was written."""
    found = [*changed_files(study).values(), *(t for r in runs for t in record_of(r).corrupt_files)]
    busy = (r.folder for r in runs if any(map(lock_owner, r.folder.glob(".lock*"))))
    if found := [*found, *(f"{folder} is being trained" for folder in busy)]:
        sys.exit("\n".join(found))


def main(studies: list[str]) -> None:
    for study in map(Path, studies):
        runs = runs_of(study)
        refuse(study, runs)
        names = new_names(study)
        for folder in (*(run.folder for run in runs), study):
            with exclusive(folder):
                (folder / FILE).unlink(missing_ok=True)
                for name in without_digest(folder):
                    rewrite(folder / name, names)
                if folder != study or without_digest(folder):
                    record(folder)
        for run in runs:
            run.folder.rename(study / names[run.name])
        print(f"{study}: {sum(run.name != names[run.name] for run in runs)} of {len(runs)} renamed")


if __name__ == "__main__":
    main(sys.argv[1:])
