"""`gnexp bench` times two ways of training the same network, and says so in its files."""

import contextlib
import csv
import multiprocessing
import os
from pathlib import Path

import bench_work
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gnexp.cli import app
from gnexp.config.resolve import bench_run, resolve
from gnexp.config.schema import BenchConfig, DataConfig, ModelConfig
from gnexp.data.device_images import DeviceDataset, crop_flip, normalize
from gnexp.report.benchmark import aggregate, figure
from gnexp.runner.benchmark import measurement
from gnexp.runner.benchmark.loops import (
    PilImages,
    gnexp_loop,
    plain_optimizer,
    plain_transform,
    plain_update,
)
from gnexp.runner.benchmark.measurement import Task
from gnexp.runner.benchmark.timer import (
    LEAST_UPDATES,
    LEAST_WARM_UP,
    MeasurementFailed,
    Peers,
    measure_together,
    time_updates,
)
from gnexp.runner.build import data as build
from gnexp.runner.build import model as networks
from gnexp.training.cuda_graph import GraphStep
from gnexp.training.stacked_step import StackedStep

FLOAT32 = 1e-6  # images in [-3, 3]: two orders of the same few operations
FLOAT64 = 1e-12

SMALL = ("model=resnet8", "model.width=8", "data.train_limit=40", "data.test_limit=10")
QUICK = ("seeds=2", "repeats=1", "seconds=0.05", "workers=1", "device=cpu")


def rows_of(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of one small bench, run from the command line.

    Its measurements share this process: starting one for each would take half a minute.
    """
    here = tmp_path_factory.mktemp("bench")
    threads = torch.get_num_threads()
    with contextlib.chdir(here), pytest.MonkeyPatch.context() as patch:
        patch.setattr(measurement, "measure_together", lambda work, tasks: [work(*tasks, Peers())])
        patch.setattr(measurement, "cores", lambda: 1)  # its loaders take seconds to start
        patch.setitem(measurement.PRODUCT_SIZE, "cpu", 512)
        assert app.main(["bench", *SMALL, *QUICK, "norms=[gn]", "batches=[1,4]", "name=b-1"]) == 0
    torch.set_num_threads(threads)
    return here / "results" / "b-1"


@pytest.fixture
def threads():
    """What a measurement does to the number of threads is undone."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def small_run(norm="gn", batch=4, seeds=2):
    data = DataConfig(train_limit=40, test_limit=10)
    config = BenchConfig(
        model=ModelConfig("resnet8", 8), data=data, seeds=seeds, device="cpu", norms=[norm]
    )
    return resolve(bench_run(config, norm, batch))


def seeded(run, seed):
    return networks.seeded_model(run, build.images_of(run.data).summary, seed)


def test_a_bench_leaves_tables_page_and_figure(results):
    names = {"timings.csv", "bench.csv", "ratios.csv", "bench.md", "bench.png", "bench.svg"}
    assert {path.name for path in results.iterdir()} == names
    page = (results / "bench.md").read_text()
    for word in ("gnexp bench", torch.__version__, "n = 1", "`gnexp bench", "512 x 512", "GN(8)"):
        assert word in page
    assert (results / "bench.png").read_bytes()[:4] == b"\x89PNG"


def test_each_cell_has_one_counted_row_per_way_and_all_columns(results):
    rows = rows_of(results / "bench.csv")
    assert tuple(rows[0]) == aggregate.BENCH_COLUMNS
    counted = [(r["norm"], r["batch"], r["way"]) for r in rows if r["counted"] == "true"]
    assert counted == [("gn", b, way) for b in "14" for way in ("plain", "gnexp")]
    assert {r["threads"] for r in rows} == {"1"}
    assert {(r["processes"], r["stack"]) for r in rows if r["way"] == "gnexp"} == {("1", "2")}
    for row in rows:
        low, middle, high = (float(row[f"examples_per_s{e}"]) for e in ("_min", "", "_max"))
        assert 0 < low <= middle <= high
        assert float(row["ms_per_update"]) == pytest.approx(2 * int(row["batch"]) * 1000 / middle)
        assert 0 < float(row["fraction_of_matmul"]) < 1
        assert int(row["peak_memory_bytes"]) > 50e6, "PyTorch alone takes more"


def test_the_ratios_are_those_of_the_rates_in_the_table(results):
    rate = {
        (r["way"], r["batch"]): float(r["examples_per_s"])
        for r in rows_of(results / "bench.csv")
        if r["counted"] == "true"
    }
    ratios = {(r["scope"], r["batch"]): float(r["ratio"]) for r in rows_of(results / "ratios.csv")}
    assert set(ratios) == {("cell", "1"), ("cell", "4"), ("norm", ""), ("all", "")}
    for batch in "14":
        expected = rate["gnexp", batch] / rate["plain", batch]
        assert ratios["cell", batch] == pytest.approx(expected, rel=FLOAT64)
    # A pass over 1,000 images at batch 1 and 1,000 at batch 4.
    spent = {w: 1000 / rate[w, "1"] + 1000 / rate[w, "4"] for w in ("plain", "gnexp")}
    assert ratios["norm", ""] == pytest.approx(spent["plain"] / spent["gnexp"], rel=FLOAT64)
    assert ratios["all", ""] == pytest.approx(ratios["norm", ""], rel=FLOAT64)


def test_both_ways_train_the_same_network_on_as_many_images(results):
    for column in ("parameters", "examples_per_epoch", "flop_per_example", "seeds"):
        values = {row[column] for row in rows_of(results / "bench.csv")}
        assert len(values) == 1, column
    for row in rows_of(results / "timings.csv"):
        assert int(row["updates"]) >= LEAST_UPDATES
        together = int(row["stack"]) * int(row["batch"])
        assert int(row["examples"]) == int(row["updates"]) * together
        measured = int(row["examples"]) / float(row["time_s"])
        assert float(row["examples_per_s"]) == pytest.approx(measured)


def test_the_plain_loop_is_timed_on_one_thread_and_on_one_per_core(monkeypatch):
    monkeypatch.setattr(measurement, "cores", lambda: 4)
    here = measurement.Machine(torch.device("cpu"), 1.0)
    assert (here.plain_threads, here.gnexp_threads, here.processes) == ((1, 4), 1, 4)


def timing(way, batch, repeat, rate, threads=1, norm="bn"):
    values = dict.fromkeys(aggregate.TIMING_COLUMNS, 1)
    mine = {"norm": norm, "groups": None, "batch": batch, "way": way, "threads": threads}
    return {**values, **mine, "repeat": repeat, "examples_per_s": rate, "layout": "contiguous"}


def test_the_faster_number_of_threads_counts_and_the_median_is_of_repeats():
    timings = [
        timing("plain", 2, repeat, rate, threads)
        for threads, rates in ((1, (10.0, 12.0, 11.0)), (2, (9.0, 30.0, 8.0)))
        for repeat, rate in enumerate(rates)
    ]
    timings += [timing("gnexp", 2, repeat, rate) for repeat, rate in enumerate((20.0, 60.0, 44.0))]
    rows = {(r["way"], r["threads"]): r for r in aggregate.bench_rows(timings)}
    assert [rows[key]["counted"] for key in (("plain", 1), ("plain", 2))] == [True, False]
    assert rows["plain", 1]["examples_per_s"] == 11.0
    ratio = aggregate.ratio_rows(timings)[0]
    assert (ratio["ratio"], ratio["ratio_min"], ratio["ratio_max"]) == (4.0, 2.0, 5.0)


def test_a_cell_that_was_timed_in_one_way_only_has_no_ratio():
    timings = [timing("plain", 1, 1, 5.0), timing("plain", 2, 1, 5.0), timing("gnexp", 1, 1, 9.0)]
    assert [row["batches"] for row in aggregate.ratio_rows(timings)] == ["1"] * 3


def test_equal_numbers_give_equal_bytes(tmp_path):
    timings = [
        timing(way, batch, 1, 10.0 * batch * factor, norm=norm)
        for norm in ("bn", "gn")
        for batch in (1, 8)
        for way, factor in (("plain", 1), ("gnexp", 3))
    ]
    rows, ratios = aggregate.bench_rows(timings), aggregate.ratio_rows(timings)
    for name in ("a", "b"):
        figure.draw_bench(rows, ratios, tmp_path / name, "a title")
    for kind in ("png", "svg"):
        one, other = ((tmp_path / f"{name}.{kind}").read_bytes() for name in "ab")
        assert one == other


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_an_image_costs_resnet20_three_times_its_41_million_products(norm):
    run = resolve(bench_run(BenchConfig(), norm, 1))
    flop = measurement.flop_per_example(run)
    # 40.8 M multiplications and additions forward (He et al. 2015 count them together); backward
    # twice as many, but for the gradient by the image.
    assert flop == pytest.approx(3 * 2 * 40.8e6, rel=0.02)


def test_the_plain_update_is_the_textbooks():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    x_NCHW, y_N = torch.randn(5, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 2, 1, 0])
    weight, bias = (p.detach().clone() for p in model.parameters())
    optimizer = plain_optimizer(model, lr=0.1, momentum=0.9, weight_decay=5e-4)
    velocity = [torch.zeros_like(weight), torch.zeros_like(bias)]
    for _ in range(3):
        plain_update(model, optimizer, x_NCHW, y_N)
        error_NK = (x_NCHW.flatten(1) @ weight.t() + bias).softmax(1) - F.one_hot(y_N, 3)
        gradients = error_NK.t() @ x_NCHW.flatten(1) / 5, error_NK.mean(dim=0)
        for tensor, gradient, v in zip((weight, bias), gradients, velocity, strict=True):
            gradient = gradient + 5e-4 * tensor
            v.mul_(0.9).add_(gradient)
            tensor -= 0.1 * (gradient + 0.9 * v)
    for ours, theirs in zip((weight, bias), model.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=FLOAT64)


def test_both_ways_show_the_network_the_same_pixels():
    images = build.images_of(small_run().data)
    held = DeviceDataset(images)
    mean, std = held.mean.flatten().tolist(), held.std.flatten().tolist()
    as_it_is = PilImages(images.x_train, images.y_train, plain_transform(32, 0, False, mean, std))
    ours = normalize(held.x_train, held.mean, held.std)
    for index in (0, 17, 39):
        x_CHW, label = as_it_is[index]
        assert torch.allclose(x_CHW, ours[index], rtol=0, atol=FLOAT32)
        assert label == images.y_train[index]
    # What the plain loop draws is one of the crops and flips that we draw from.
    moved = PilImages(images.x_train, images.y_train, plain_transform(32, 4, True, mean, std))
    torch.manual_seed(1)
    every = torch.cartesian_prod(torch.arange(9), torch.arange(9), torch.arange(2))
    all_N = crop_flip(
        held.x_train[:1].expand(len(every), -1, -1, -1), every[:, :2], every[:, 2].bool(), 4
    )
    distance = (normalize(all_N, held.mean, held.std) - moved[0][0]).abs().amax(dim=(1, 2, 3))
    assert distance.min() < FLOAT32


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_gnexp_is_timed_on_all_its_seeds_and_on_data_it_prepares(norm, threads):
    run = small_run(norm, batch=10, seeds=3)
    (row,) = measurement.measure_gnexp(Task(run, 0.01, (1,)), Peers())
    assert (row["stack"], row["execution"], row["examples_per_epoch"]) == (3, "eager", 40)
    assert row["examples"] == row["updates"] * 30 >= LEAST_UPDATES * 30
    assert row["parameters"] == sum(p.numel() for p in seeded(run, 0).parameters())


def test_the_branches_of_a_graph_are_timed_as_a_stack_is():
    run = small_run(batch=4, seeds=3)
    images = build.device_images(run.data, torch.device("cpu"))
    models = [seeded(run, seed) for seed in run.seeds]
    step = GraphStep([StackedStep([model], 4, 0.9, 5e-4) for model in models])
    train = gnexp_loop(step, images, run.seeds, 4, "crop_flip", 0.01)
    timing = time_updates(train, 0.0, Peers(), lambda: None)
    assert (timing.updates, timing.examples) == (LEAST_UPDATES, LEAST_UPDATES * 12)
    for seed in run.seeds:
        before = seeded(run, seed).state_dict()["fc.weight"]
        assert not torch.equal(step.model(seed).state_dict()["fc.weight"], before)


class Slow(Peers):
    """Peers that are still busy for a few updates."""

    left = 3

    def busy(self):
        self.left -= 1
        return self.left > 0


def test_enough_updates_are_timed_and_a_peer_that_is_not_done_has_the_machine_with_others():
    done, looks = [], []

    def train(tick):
        while True:
            done.append(1)
            tick(7)

    timing = time_updates(train, 0.0, Slow(), lambda: looks.append(len(done)))
    assert (timing.updates, timing.examples) == (LEAST_UPDATES, 7 * LEAST_UPDATES)
    begun = 1 + LEAST_WARM_UP
    assert looks == [begun, begun + LEAST_UPDATES], "the device is waited for at each look"
    assert len(done) == begun + LEAST_UPDATES + 2, "two more updates that nobody times"


def test_the_plain_loop_is_timed_in_a_process_of_its_own_with_its_loaders_counted():
    ((row,),) = measure_together(measurement.measure_plain, [Task(small_run(), 0.01, (1,))])
    assert row["examples"] == 4 * row["updates"]
    assert row["peak_memory_bytes"] > 3 * 100e6, "PyTorch, three times"
    assert not multiprocessing.active_children()


def test_processes_start_their_clocks_together_and_stop_together():
    (quick, first, a), (slow, second, b) = measure_together(bench_work.together, [0.0, 0.4])
    assert len({a, b, os.getpid()}) == 3
    assert quick.updates == slow.updates == LEAST_UPDATES
    warm = 1 + LEAST_WARM_UP
    assert first[warm] >= second[warm - 1], "the quick one waits for the slow one to be warm"
    assert first[-1] > second[-2], "and trains until the slow one is timed"
    assert not multiprocessing.active_children()


def test_a_process_that_fails_says_why_and_leaves_nobody():
    with pytest.raises(MeasurementFailed, match="ValueError: no room"):
        measure_together(bench_work.fails, [0, 1])
    assert not multiprocessing.active_children()


SOME = ("batches=[4]", *SMALL)
MISTAKES = {
    "unknown norm": (["norms=[bn,gm]"], ["norms=[bn,gm]", "gm", "did you mean gn"]),
    "one norm": (["norms=gn"], ["norms=gn must be a list of names", "norms=[bn,gn]"]),
    "the key of train": (["norm=gn"], ["norm", "norms"]),
    "a batch twice": (["batches=[2,4,2]"], ["batches=[2, 4, 2]", "each once"]),
    "a batch above the data": (["batches=[1,64]", *SMALL], ["batches=[1, 64]", "at most 40"]),
    "no time": (["seconds=0"], ["seconds=0", "positive"]),
    "tf32 on a CPU": (["precision=tf32", "device=cpu", *SOME], ["precision=tf32", "CUDA"]),
    "a device there is not": (["device=cuda:99"], ["device=cuda:99", "device=cpu"]),
    "groups that do not divide": (["groups=7", *SOME], ["groups=7", "1, 2, 4, 8"]),
    "a name with a slash": (["name=a/b"], ["name='a/b'", "name=bench"]),
    "a grid": (["-m", "seeds=1,2"], ["--multirun", "norms=[bn,gn]"]),
    "a folder that is a file": (["out=file", *SOME], ["out=file", "another"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_refused_with_a_sentence_and_nothing_written(name, gnexp):
    typed, words = MISTAKES[name]
    Path("file").write_text("")
    answer = gnexp("bench", *typed)
    assert answer.code == 2
    for word in words:
        assert word in answer.err
    assert "Traceback" not in answer.err
    assert [path.name for path in Path.cwd().iterdir()] == ["file"]
