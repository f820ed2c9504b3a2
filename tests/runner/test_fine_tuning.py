"""`init_from=`: training that starts from stored weights, under the same norm or another."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from gnexp.analysis.cells import cells, series
from gnexp.analysis.compared_keys import start_name, varying
from gnexp.cli import app
from gnexp.cli.launchers import from_anywhere
from gnexp.config.identity import restore
from gnexp.config.schema import DataConfig, ModelConfig, TrainConfig
from gnexp.models.load_weights import transfer
from gnexp.models.resnet import build_model
from gnexp.norms.registry import build_norm
from gnexp.runner.build import data as build
from gnexp.runner.build import initial_model, initial_weights
from gnexp.store.run import Run
from gnexp.store.study import load_study
from gnexp.training.evaluate import evaluate

SMALL = ("model=resnet8", "model.width=8", "data.train_limit=80", "data.test_limit=40")
SMALL += ("gradients=0", "workers=1")
TUNE = (*SMALL, "study=tuned", "epochs=2", "batch=8", "lr=0.05")
RUNNING = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The folder of a run with batch norm, two seeds of it, trained once."""
    here = tmp_path_factory.mktemp("trained")
    words = ("norm=bn", "batch=8", "epochs=1", "seeds=2", *SMALL, f"out={here}", "study=source")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        assert app.main(["train", *words, "device=cpu"]) == 0
    return only_run(here / "source")


@pytest.fixture
def source(trained, workdir) -> Path:
    """A copy of that run for one test, at results/source/RUN."""
    place = Path("results/source") / trained.name
    shutil.copytree(trained, place)
    return place


def only_run(study="results/tuned") -> Path:
    (folder,) = [p.parent for p in Path(study).glob("*/config.yaml")]
    return folder


def stored(folder, seed=0):
    return torch.load(folder / "checkpoint.pt", weights_only=True)[str(seed)]["model"]


def plan(source, norm="bn", **keys) -> TrainConfig:
    """A resolved config of the source's model and images, under a norm of the table."""
    options = {"bn": {"eps": 1e-5, "momentum": 0.1}, "none": {}}.get(norm, {"eps": 1e-5})
    keys = {"data": DataConfig(train_limit=80, test_limit=40), "batch": 8, "lr": 0.05, **keys}
    model = ModelConfig("resnet8", 8)
    norm = {"name": norm, **options}
    return build.resolved(TrainConfig(norm=norm, model=model, init_from=str(source), **keys))


def started(config, seed=0):
    images = build.device_images(config.data, torch.device("cpu"))
    return *initial_model.load_initial_model(config, images, seed), images


def rows(folder):
    return [{**row, "time_s": 0} for row in Run(folder).rows("metrics.csv")]


def refused(gnexp, *words):
    """Return the one sentence with which a training is refused."""
    answer = gnexp("train", *words)
    assert answer.code == 2, answer.out
    (line,) = answer.err.strip().splitlines()
    return line


def test_under_the_same_norm_training_goes_on_where_the_source_ended(source):
    seed = 1
    model, record, images = started(plan(source), seed)
    ended = Run(source).result()["seeds"][str(seed)]
    assert evaluate(model, images).accuracy == ended["test_acc"]
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in stored(source, seed).items())
    assert (record["loaded"], record["seed"]) == (len(loaded), seed)
    assert record["fresh"] == record["dropped"] == record["classifier"] == []


@pytest.mark.parametrize("norm", ["gn", "none", "gn_ws"])
def test_a_conversion_keeps_all_weights_and_affines_and_drops_the_statistics(source, norm):
    model, record, _ = started(plan(source, norm))
    before, after = stored(source), model.state_dict()
    kept = [name for name in before if not name.endswith(RUNNING)]
    assert list(after) == kept
    assert any(not torch.equal(before[n], torch.ones(len(before[n]))) for n in kept if "norm" in n)
    assert all(torch.equal(after[name], before[name]) for name in kept)
    assert sorted(record["dropped"]) == sorted(n for n in before if n.endswith(RUNNING))


def test_the_terminal_and_the_result_say_what_was_loaded_and_what_was_not(gnexp, source):
    answer = gnexp("train", *TUNE, "norm=gn", f"init_from={source}", "seeds=2")
    assert answer.code == 0, answer.err
    (line,) = [line for line in answer.out.splitlines() if "starts from" in line]
    assert line == (
        f"gn (8 groups) starts from {source.name}, seed by seed: 23 tensors loaded; running"
        " statistics of 7 layers dropped"
    )
    seeds = Run(only_run()).result()["seeds"]
    for seed in ("0", "1"):
        record = seeds[seed]["initial_weights"]
        assert (record["source"], record["seed"], record["loaded"]) == (source.name, int(seed), 23)
        assert "norm1.running_mean" in record["dropped"]


def test_a_frozen_batch_norm_takes_statistics_and_affine_and_keeps_them(gnexp, source):
    assert gnexp("train", *TUNE, "norm=bn_frozen", f"init_from={source}").code == 0
    before, after = stored(source), stored(only_run())
    frozen = [n for n in after if "norm" in n]
    assert {n.rpartition(".")[2] for n in frozen} == {"weight", "bias", *RUNNING[:2]}
    assert all(torch.equal(after[n], before[n]) for n in frozen)
    assert not torch.equal(after["conv1.weight"], before["conv1.weight"])


def test_a_norm_that_was_not_trained_with_statistics_has_none_to_freeze(gnexp, source):
    bare = {n: v for n, v in stored(source).items() if not n.endswith(RUNNING)}
    torch.save(bare, "gn.pt")
    words = (*TUNE, "init_from=gn.pt")
    why = "no running statistics for norm=bn_frozen to freeze (layer norm1)"
    assert why in refused(gnexp, *words, "norm=bn_frozen")
    assert gnexp("train", *words, "norm=bn_frozen", "init_statistics=reestimate").code == 0
    answer = gnexp("train", *words, "norm=bn")
    assert "running statistics of 7 layers not stored, as in a new network" in answer.out


def test_for_other_classes_the_last_layer_alone_is_as_it_was_drawn():
    def model(classes, seed):
        torch.manual_seed(seed)
        return build_model("resnet8", lambda c: build_norm("gn", c), classes, 16)

    ten, five = model(10, 0).state_dict(), model(5, 1)
    drawn = {name: value.clone() for name, value in five.state_dict().items()}
    moved = transfer(five, ten, ["norm1"], 5)
    assert moved.classifier == ("fc.weight", "fc.bias")
    for name, value in five.state_dict().items():
        assert torch.equal(value, drawn[name] if name.startswith("fc.") else ten[name])
    assert moved.sentence().endswith("fc drawn anew, for another number of classes")


def test_weights_of_another_network_are_refused_in_one_sentence_before_any_work(gnexp, source):
    start = f"init_from={source}"
    shape = "stored conv1.weight has shape (8, 3, 3, 3), and (16, 3, 3, 3)"
    assert shape in refused(gnexp, start, *(w.replace("width=8", "width=16") for w in TUNE))
    lack = "the stored weights lack: stage1.1.conv1.weight, stage1.1.conv2"
    assert lack in refused(gnexp, start, *(w.replace("resnet8", "resnet20") for w in TUNE))
    assert not Path("results/tuned").exists() or not list(Path("results/tuned").iterdir())


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module."])
def test_a_file_of_weights_is_the_same_run_however_they_are_wrapped(source, wrap):
    weights = stored(source)
    torch.save(weights, "plain.pt")
    if wrap == "module.":
        torch.save({f"module.{name}": value for name, value in weights.items()}, "wrapped.pth")
    else:
        torch.save(weights if wrap == "plain" else {wrap: weights, "epoch": 3}, "wrapped.pth")
    one, other = plan("plain.pt"), plan("wrapped.pth")
    assert one.init_checksum == other.init_checksum
    loaded = started(other, seed=5)[0].state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in weights.items())


def test_weights_of_a_library_load_into_its_converted_model(workdir):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    weights = timm.create_model("test_efficientnet", num_classes=7).state_dict()
    torch.save({"state_dict": weights}, "library.pth")
    model = ModelConfig("test_efficientnet", None, library="timm")
    data = DataConfig(train_limit=20, test_limit=20)
    norm, start = {"name": "gn", "eps": 1e-5}, "library.pth"
    typed = TrainConfig(norm=norm, model=model, data=data, groups=1, init_from=start)
    model, record, _ = started(build.resolved(typed))
    assert record["classifier"] == ["classifier.weight", "classifier.bias"]
    assert record["fresh"] == []
    loaded = {name.replace(".norm.", "."): v for name, v in model.state_dict().items()}
    kept = [n for n in weights if not n.endswith(RUNNING) and not n.startswith("classifier")]
    assert len(kept) == record["loaded"]
    assert all(torch.equal(loaded[name], weights[name]) for name in kept)


def test_a_job_elsewhere_reads_the_weights_where_the_call_was_typed():
    config = TrainConfig(init_from="results/source/RUN", out="mine")
    job = from_anywhere(config, Path("/typed/here"))
    assert (job.init_from, job.out) == ("/typed/here/results/source/RUN", "/typed/here/mine")
    assert (job.data.root, job.workers) == (None, 1)


def test_what_is_no_file_of_tensors_is_refused_without_running_anything_in_it(gnexp, source):
    class Evil:
        def __reduce__(self):
            return Path.touch, (Path("ran"),)

    torch.save({"conv1.weight": Evil()}, "evil.pt")
    torch.save({"epoch": 3}, "numbers.pt")
    for file, said in (("evil.pt", "cannot be read as"), ("numbers.pt", "is not a state dict")):
        assert f"init_from={file} {said}" in refused(gnexp, *TUNE, f"init_from={file}")
    assert not Path("ran").exists()


def test_a_damaged_file_of_weights_is_refused_and_named(gnexp, source):
    data = bytearray((source / "checkpoint.pt").read_bytes())
    data[len(data) // 2] ^= 1
    (source / "checkpoint.pt").write_bytes(data)
    start = f"init_from={source}"
    changed = f"{start}/checkpoint.pt was changed since it was written"
    assert changed in refused(gnexp, *TUNE, start)
    (source / "digests.json").unlink()
    assert f"{start}/checkpoint.pt cannot be read as tensors" in refused(gnexp, *TUNE, start)
    why = "cannot be read as tensors (Weights only load failed); save weights"
    assert why in refused(gnexp, *TUNE, f"{start}/result.json")


def test_a_run_is_named_by_the_weights_and_not_by_where_they_lie(gnexp, source):
    assert gnexp("train", *TUNE, f"init_from={source}").code == 0
    first = only_run()
    shutil.move(source, "elsewhere")
    answer = gnexp("train", *TUNE, "init_from=elsewhere")
    assert answer.code == 0
    assert "epoch" not in answer.out.split("|")[-1]
    assert only_run() == first
    states = torch.load("elsewhere/checkpoint.pt", weights_only=True)
    states["0"]["model"]["conv1.weight"][0, 0, 0, 0] += 1
    torch.save(states, "elsewhere/checkpoint.pt")
    Path("elsewhere/digests.json").unlink()
    assert gnexp("train", *TUNE, "init_from=elsewhere").code == 0
    assert len(list(Path("results/tuned").glob("gn-*"))) == 2


def test_seeds_trained_later_do_not_rename_what_started_from_a_source(source):
    before = plan(source).init_checksum
    states = torch.load(source / "checkpoint.pt", weights_only=True)
    states["2"] = {**states["1"], "model": {k: v + 1 for k, v in states["1"]["model"].items()}}
    torch.save(states, source / "checkpoint.pt")
    (source / "digests.json").unlink()
    assert plan(source).init_checksum == before
    alone = [plan(source / f"seed-{k}").init_checksum for k in (0, 1, 2)]
    assert len({before, *alone}) == 4


class Stop(BaseException):
    """What no `except Exception` catches, as a kill would not."""


def test_a_stopped_run_ends_as_it_would_have_though_its_source_is_gone(gnexp, source, monkeypatch):
    words = (*TUNE, "norm=bn", f"init_from={source}", "seeds=2")
    assert gnexp("train", *words, "out=whole").code == 0
    write = Run.write_checkpoint

    def stop(self, data):
        write(self, data)
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_checkpoint", stop)
        with pytest.raises(Stop):
            gnexp("train", *words)
    shutil.rmtree(source)
    answer = gnexp("train", *words)
    assert answer.code == 0, answer.err
    assert "epoch 2" in answer.out
    assert "epoch 1:" not in answer.out
    whole, went_on = Path("whole/tuned") / only_run().name, only_run()
    assert rows(went_on) == rows(whole)
    seeds = [Run(folder).result()["seeds"]["1"] for folder in (went_on, whole)]
    assert seeds[0]["initial_weights"] == seeds[1]["initial_weights"]


def test_a_seed_that_has_yet_to_start_needs_the_source(gnexp, source):
    words = (*TUNE, f"init_from={source}")
    assert gnexp("train", *words).code == 0
    shutil.rmtree(source)
    assert gnexp("train", *words).code == 0  # complete
    gone = f"init_from={source} does not exist, and seed 1 of {only_run().name}"
    assert gone in refused(gnexp, *words, "seeds=2")
    assert "seed 0 of" in refused(gnexp, *words, "force=true")
    assert "init_from=nowhere does not exist" in refused(gnexp, *TUNE, "init_from=nowhere")


def test_a_seed_that_the_source_lacks_is_refused_and_one_can_stand_for_all(gnexp, source):
    why = "has finished seeds 0,1, and not seed 4; type seeds=[0,1]"
    assert why in refused(gnexp, *TUNE, f"init_from={source}", "seeds=[1,4]")
    one = f"init_from={source}/seed-1"
    assert gnexp("train", *TUNE, one, "seeds=[1,4]").code == 0
    assert "/seed-1: " in gnexp("train", *TUNE, one, "seeds=[1,4]", "force=true").out
    other = refused(gnexp, *TUNE, f"init_from={source}/seed-3")
    assert "have finished seed-0, seed-1" in other
    study = refused(gnexp, *TUNE, f"init_from={source.parent}")
    assert "is a study, not a run; name one of its 1" in study


def test_reestimated_statistics_are_those_of_the_training_images(source):
    config = plan(source, "bn_frozen", init_statistics="reestimate")
    model, _, images = started(config)
    x = (images.x_train.double() / 255 - images.mean.double()) / images.std.double()
    weights = stored(source)
    first = torch.nn.functional.conv2d(x, weights["conv1.weight"].double(), padding=1).numpy()
    found = model.norm1
    assert found.running_mean.numpy() == pytest.approx(first.mean((0, 2, 3)), abs=1e-5)  # float32
    assert found.running_var.numpy() == pytest.approx(first.var((0, 2, 3)), rel=1e-5)
    gamma, beta = (weights[f"norm1.{k}"].double().numpy() for k in ("weight", "bias"))
    scale = gamma / np.sqrt(first.var((0, 2, 3)) + 1e-5)
    second = (first - first.mean((0, 2, 3))[:, None, None]) * scale[:, None, None]
    second = torch.from_numpy(np.maximum(second + beta[:, None, None], 0))
    filters = weights["stage1.0.conv1.weight"].double()
    second = torch.nn.functional.conv2d(second, filters, padding=1)
    found = model.stage1[0].norm1
    assert found.running_var.numpy() == pytest.approx(second.numpy().var((0, 2, 3)), rel=1e-4)
    kept = [n for n in weights if not n.endswith(RUNNING)]
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in kept)


def test_a_norm_without_statistics_makes_one_run_of_both_ways_to_treat_them(gnexp, source):
    for norm in ("gn", "bn_frozen"):
        for how in ("keep", "reestimate"):
            words = (f"norm={norm}", f"init_statistics={how}", f"init_from={source}")
            assert gnexp("train", *TUNE, *words).code == 0
    study = load_study("results/tuned")
    assert varying(study.runs) == ["init_statistics"]  # init_from is the same for all
    labels = [line.label for line in series(cells(study.runs))]
    frozen = [f"frozen BN, init_statistics={how}" for how in ("keep", "reestimate")]
    assert sorted(labels) == ["GN(8)", *frozen]


def test_two_sources_are_told_apart_in_a_report_by_their_names(gnexp, source):
    for seed in (0, 1):
        assert gnexp("train", *TUNE, f"init_from={source}/seed-{seed}").code == 0
    shown = [cell.key["init_from"] for cell in cells(load_study("results/tuned").runs)]
    assert [name.partition(" (")[0] for name in shown] == [
        f"{source.name}/seed-0",
        f"{source.name}/seed-1",
    ]
    config = {"init_from": "a/b/RUN/checkpoint.pt", "init_checksum": "0123456789"}
    assert start_name(config) == "RUN (012345)"


def test_trials_of_a_rate_start_from_the_seeds_that_there_are_in_turn(source):
    weights = initial_weights.read_source(str(source))
    assert [weights.seed(seed) for seed in (1000, 1001, 1002)] == [0, 1, 0]


def test_private_training_does_not_start_from_what_was_trained_on_its_images(gnexp, source):
    words = (*SMALL, "epochs=1", "batch=40", "norm=gn", "privacy=dpsgd", "privacy.epsilon=50")
    why = "excludes privacy=dpsgd: that run was trained on data=shapes10"
    assert why in refused(gnexp, *words, f"init_from={source}")
    both = refused(gnexp, *words, f"init_from={source}", "init_statistics=reestimate")
    assert "init_statistics=reestimate excludes privacy=dpsgd" in both
    torch.save(stored(source), "public.pt")  # of which nothing is known
    answer = gnexp("train", *words, "init_from=public.pt")
    assert answer.code == 0, answer.err
    assert "epsilon does not cover what the weights at init_from know" in answer.out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("init_statistics=reestimate", "norm=bn"), "reestimate needs weights to start from"),
        (("init_statistics=often",), "init_statistics=often is not one of keep, reestimate"),
        (("init_from=x.pt", "zero_gamma=true"), "zero_gamma=true excludes init_from="),
        (("init_from=x.pt", "initialization=fixup"), "initialization=fixup excludes init_from="),
        (("init_from=x.pt",), "init_from=x.pt does not exist"),
        (("experiment=fine_tune", "norm=bn", "batch=2"), "needs weights to start from"),
    ],
)
def test_what_contradicts_a_start_from_stored_weights_is_refused(gnexp, words, said):
    answer = gnexp("train", *words)
    assert answer.code == 2
    assert said in answer.err


def test_what_is_measured_at_the_start_is_measured_at_the_loaded_weights(gnexp, source):
    words = [w for w in TUNE if not w.startswith(("gradients", "epochs"))]
    assert gnexp("train", *words, "epochs=1", "gradients=8", f"init_from={source}").code == 0
    config = restore(Run(only_run()).result()["config"])
    weights = stored(source)
    norm = sum(float(v.double().square().sum()) for n, v in weights.items() if "conv" in n) ** 0.5
    (row,) = [
        r
        for r in Run(only_run()).rows("gradients.csv")
        if (r["epoch"], r["parameters"]) == (0, "conv")
    ]
    assert config.init_checksum
    assert row["weight_norm"] == pytest.approx(norm, rel=1e-5)
