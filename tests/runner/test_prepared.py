"""A run is prepared once, and carried along: data opened once, one network per seed."""

import dataclasses
import json
import pickle
from collections import Counter

import pytest

from gnexp.config.resolve import resolve
from gnexp.config.schema import DataConfig, ModelConfig, TrainConfig
from gnexp.norms.registry import NORMS
from gnexp.norms.statistic_size import values_per_statistic
from gnexp.runner.build import data as build_data
from gnexp.runner.build import model as networks
from gnexp.runner.build.data import images_of
from gnexp.runner.build.model import model_without_weights, seeded_model
from gnexp.runner.execute import Task, run_task
from gnexp.runner.plan import plan
from gnexp.runner.schedule import Replica, group_of

TYPED = ("norm=gn", "groups=32", "workers=1")
TINY = ("data.train_limit=20", "data.test_limit=20", "epochs=1", "device=cpu")


@pytest.fixture
def counts(monkeypatch):
    """What this process opens and builds; an outline is a network without weights."""
    found = Counter()

    def count(module, name):
        function = getattr(module, name)

        def counted(*args, **options):
            result = function(*args, **options)
            weights = result.parameters() if name == "build_model" else ()
            found["outline" if any(w.is_meta for w in weights) else name] += 1
            return result

        monkeypatch.setattr(module, name, counted)

    count(build_data, "load_images")
    count(networks, "build_model")
    networks._outlines.clear()
    networks._sites_of_table.cache_clear()
    return found


def test_a_run_opens_its_data_once_and_builds_one_network_per_seed(gnexp, counts):
    assert gnexp("train", *TYPED, *TINY, "batch=2", "seeds=2").code == 0
    # Outlines: one that names the norm layers, one to look at before training.
    assert counts == {"load_images": 1, "build_model": 2, "outline": 2}


def test_a_grid_opens_its_data_once_and_looks_at_one_network_for_all_batch_sizes(gnexp, counts):
    assert gnexp("train", "-m", *TYPED, *TINY, "batch=2,4", "report.format=[png]").code == 0
    assert counts == {"load_images": 1, "build_model": 2, "outline": 2}


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
