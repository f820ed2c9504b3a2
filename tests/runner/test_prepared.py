"""A run is prepared once, and carried along: data opened once, one network per seed."""

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from gnexp.config.resolve import resolve
from gnexp.config.schema import DataConfig, ModelConfig, TrainConfig
from gnexp.norms.registry import NORMS
from gnexp.norms.statistic_size import values_per_statistic
from gnexp.runner.build.data import images_of
from gnexp.runner.build.model import model_without_weights, seeded_model
from gnexp.runner.execute import Task, run_task
from gnexp.runner.plan import plan
from gnexp.runner.schedule import Replica, group_of

ROOT = Path(__file__).resolve().parents[2]
TYPED = ("norm=gn", "groups=32")
TINY = ("data.train_limit=20", "data.test_limit=20", "epochs=1", "device=cpu")

# Loaded by every process, also by a worker: counts what it opens and builds, by process.
COUNTING = """
import importlib.util, os, sys

COUNTED = {"gnexp.data.sources": "load_images", "gnexp.models.resnet": "build_model"}

class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name not in COUNTED:
            return None
        sys.meta_path.remove(Finder)
        spec = importlib.util.find_spec(name)
        sys.meta_path.insert(0, Finder)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            function = getattr(module, COUNTED[name])

            def counted(*args, **options):
                result = function(*args, **options)
                weights = list(result.parameters()) if hasattr(result, "parameters") else []
                kind = "outline" if any(w.is_meta for w in weights) else COUNTED[name]
                with open(os.environ["COUNTS"], "a") as file:
                    file.write(f"{os.getpid()} {kind}\\n")
                return result

            setattr(module, COUNTED[name], counted)

        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder)
"""


def counts(folder, *words):
    """Train, and return {process: Counter of what it did}, this call's own process first."""
    (folder / "sitecustomize.py").write_text(COUNTING)
    path = os.pathsep.join(map(str, (folder, ROOT)))
    log = folder / "counts.txt"
    process = subprocess.Popen(
        [sys.executable, "-m", "gnexp", "train", *words],
        env={**os.environ, "PYTHONPATH": path, "COUNTS": str(log)},
        stdout=subprocess.DEVNULL,
    )
    assert process.wait() == 0
    found = {str(process.pid): Counter()}
    for line in log.read_text().splitlines():
        pid, kind = line.split()
        found.setdefault(pid, Counter())[kind] += 1
    return list(found.values())


def test_one_process_opens_its_data_once_and_builds_one_network_per_seed(workdir):
    (main,) = counts(workdir, *TYPED, "batch=2", *TINY, "workers=1", "seeds=2")
    assert (main["load_images"], main["build_model"]) == (1, 2)
    # Outlines have no weights: one that names the norm layers, one to look at before training.
    assert main["outline"] == 2


def test_a_grid_opens_its_data_once_in_each_process_and_builds_where_it_trains(workdir):
    words = ("-m", *TYPED, "batch=2,4", *TINY, "workers=2", "report.format=[png]")
    main, *workers = counts(workdir, *words)
    assert len(workers) == 2
    assert (main["load_images"], main["build_model"]) == (1, 0)
    assert main["outline"] == 2  # both batch sizes are looked at by one
    for worker in workers:
        assert worker == {"load_images": 1, "outline": 1, "build_model": 1}


def config(norm="gn", **keys):
    options = {k: v for k, v in NORMS[norm].options.items() if k not in ("num_groups",)}
    data = DataConfig(train_limit=20, test_limit=20)
    keys = {"norm": {"name": norm, **options}, "data": data, "batch": 2, "epochs": 1, **keys}
    return TrainConfig(**{"model": ModelConfig("resnet8", 8), "gradients": 0, **keys})


@pytest.mark.parametrize("norm", NORMS)
def test_a_network_without_weights_is_that_of_a_seed_but_for_its_numbers(norm):
    each = resolve(config(norm))
    images = images_of(each.data).summary
    outline, whole = model_without_weights(each, images), seeded_model(each, images, 0)
    shapes = [
        {name: (tensor.shape, tensor.dtype) for name, tensor in model.state_dict().items()}
        for model in (outline, whole)
    ]
    assert shapes[0] == shapes[1]
    sizes = [values_per_statistic(model, (3, 8, 8), 2) for model in (outline, whole)]
    assert sizes[0] == sizes[1]


def test_a_prepared_run_is_small_and_survives_the_way_to_a_worker(workdir):
    (run,) = plan([config(seeds=3)])
    there = pickle.loads(pickle.dumps(run))
    assert dataclasses.asdict(there) == dataclasses.asdict(run)
    assert len(pickle.dumps(run)) < 10_000
    assert run.parameters == sum(
        p.numel() for p in seeded_model(run.config, run.data, 1).parameters()
    )


def test_images_that_changed_after_the_call_began_are_not_trained_on(workdir):
    (run,) = plan([config()])
    other = dataclasses.replace(run, data=dataclasses.replace(run.data, checksum="0"))
    step = group_of([Replica(other, 0)], threads=1)
    outcomes = run_task(Task(step, "gnexp train", "now"), print)
    assert outcomes[run.name, 0]["status"] == "failed"
    assert "images were changed after this call had begun" in outcomes[run.name, 0]["why"]
    status = json.loads((run.folder / "status.json").read_text())["seeds"]["0"]
    assert status["status"] == "failed"
