"""`import gnexp`: the commands as functions, with the command line's rules and sentences."""

import dataclasses
import io
import multiprocessing
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from run_files import epochs, only_run, seeds
from torch import nn

import gnexp as api
from gnexp.analysis.cells import RUN_COLUMNS
from gnexp.analysis.check_result import ROW_COLUMNS
from gnexp.cli.hydra_app import compose
from gnexp.cli.overrides import TAKES_A_LIST, overrides
from gnexp.config.schema import TrainConfig
from gnexp.norms.registry import NORMS

README = (Path(api.__file__).parent / "README.md").read_text()
TINY = {"model": {"name": "resnet8", "width": 8}, "data.train_limit": 40, "data.test_limit": 20}
TINY |= {"epochs": 1, "batch": 10, "gradients": 0, "device": "cpu"}
WORDS = ["model=resnet8", "model.width=8", "data.train_limit=40", "data.test_limit=20"]
WORDS += ["epochs=1", "batch=10", "gradients=0", "device=cpu"]


class Plain(nn.Module):
    """A norm without an import path, as far as gnexp is told."""

    def __init__(self, channels, scale=1.0):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x):
        return self.scale * x * self.weight[:, None, None]


LIGHT = """
import sys, io, contextlib
import gnexp
assert {"train", "check", "convert", "build_norm", "load_study", "Mistake"} <= set(dir(gnexp))
assert issubclass(gnexp.Mistake, Exception)
assert callable(gnexp.train) and callable(gnexp.load_study)
from gnexp.cli import main
with contextlib.redirect_stdout(io.StringIO()) as said:
    assert main(["--help"]) == 0
assert "usage: gnexp" in said.getvalue()
heavy = {"torch", "pandas", "numpy", "matplotlib", "hydra", "scipy"}
print(sorted(heavy & set(sys.modules)))
"""


def test_importing_gnexp_and_its_help_import_no_torch_and_no_pandas(tmp_path):
    here = {**os.environ, "PYTHONPATH": str(Path(api.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=tmp_path, env=here, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_public_names_are_what_their_docstrings_say_and_no_others():
    for name in api.__all__:
        assert getattr(api, name).__doc__
    with pytest.raises(AttributeError, match="'gnexp' has no attribute 'trian'"):
        api.trian  # noqa: B018
    assert (Path(api.__file__).parent / "py.typed").is_file()


EXAMPLES = re.findall(r"```python\n(import gnexp\n.*?)```", README, re.DOTALL)
FUNCTIONS = {
    "train": "norm\nbn ",
    "load_study": "test_loss",
    "check": "holds",
    "build_norm": "torch.Size([2, 64, 8, 8])",
    "convert": "20 normalization layers replaced, 0 left",
}


def test_every_example_of_the_readme_runs_and_prints_what_it_should(workdir, no_report):
    said = {}
    for code in EXAMPLES:
        (name,) = re.findall(r"= gnexp\.(\w+)\(", code)
        assert name not in said
        with redirect_stdout(io.StringIO()) as out:
            exec(compile(code, f"README: {name}", "exec"), {})
        said[name] = out.getvalue()
    assert said.keys() == FUNCTIONS.keys()
    for name, word in FUNCTIONS.items():
        assert word in said[name]


def test_train_stores_what_the_command_line_stores(gnexp, workdir):
    config = {**TINY, "norm": {"name": "gn", "eps": 1e-3}, "groups": 4, "seeds": 2}
    rows = api.train({**config, "study": "python"})
    words = ("norm=gn", "norm.eps=1e-3", "groups=4", "seeds=2", "workers=1", "study=typed")
    assert gnexp("train", *WORDS, *words).code == 0
    python, typed = (only_run(f"results/{study}") for study in ("python", "typed"))
    assert python.name == typed.name
    assert epochs(python) == epochs(typed)
    assert list(rows["test_acc"]) == [seed["test_acc"] for seed in seeds(typed).values()]
    assert list(rows["seed"]) == [0, 1]
    assert list(rows["norm"]) == ["gn", "gn"]
    assert list(rows["groups"]) == [4, 4]


def test_train_is_silent_unless_asked_draws_nothing_and_trains_nothing_twice(workdir, capfd):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = api.train(TINY)
    assert torch.equal(before, torch.get_rng_state())
    assert capfd.readouterr() == ("", "")
    (metrics,) = Path("results/main").glob("*/metrics.csv")
    written = metrics.stat().st_mtime_ns
    again = api.train(WORDS, verbose=True)
    assert "% test accuracy" in capfd.readouterr().out
    pd.testing.assert_frame_equal(first, again)
    assert metrics.stat().st_mtime_ns == written


def test_training_is_the_same_for_a_caller_that_records_no_gradients(workdir):
    with torch.inference_mode():
        inside = api.train({**TINY, "study": "inside"})
    outside = api.train(TINY)
    assert list(inside["status"]) == ["complete"]
    pd.testing.assert_series_equal(inside["train_loss"], outside["train_loss"])


def test_calls_from_two_threads_train_what_they_would_one_after_the_other(workdir, capfd):
    norms = ("bn", "gn")
    with ThreadPoolExecutor(2) as threads:
        tables = list(threads.map(lambda n: api.train({**TINY, "norm": n, "study": n}), norms))
    assert capfd.readouterr() == ("", "")
    for norm, table in zip(norms, tables):
        alone = api.train({**TINY, "norm": norm, "study": "alone"})
        assert list(table["test_loss"]) == list(alone["test_loss"])


def test_a_grid_gives_the_rows_of_its_runs_and_of_no_others(workdir, no_report):
    api.train({**TINY, "norm": "ln", "seeds": 2})
    grid = api.train({**TINY, "norm": ["bn", "gn"], "batch": (5, np.int64(10)), "seeds": [[3]]})
    assert {*zip(grid["norm"], grid["batch"])} == {("bn", 5), ("bn", 10), ("gn", 5), ("gn", 10)}
    assert set(grid["seed"]) == {3}
    assert list(api.train({**TINY, "norm": "ln", "seeds": [1]})["seed"]) == [1]
    study = api.load_study(Path("results/main"))
    assert len(study) == 6
    assert list(study.columns) == [*RUN_COLUMNS, "why"]
    kinds = {"norm": "string", "groups": "Int64", "batch": "Int64", "seed": "Int64"}
    kinds |= {"test_acc": "float64", "train_time_s": "float64", "lr": "float64", "why": "string"}
    assert {name: str(study.dtypes[name]) for name in kinds} == kinds
    rates = api.train({**TINY, "lr": [0.1, 1e30], "study": "rates"})
    assert list(rates["status"]) == ["complete", "diverged"]
    assert "not finite" in rates["why"][1]
    rates = api.train({**TINY, "norm": "bn", "study": "bn"})
    assert dict(rates.dtypes) == dict(study.dtypes), "whatever the study holds"


def test_a_training_that_fails_is_a_row_and_a_warning(workdir, monkeypatch):
    def broken(*args):
        raise RuntimeError("out of order")

    monkeypatch.setattr("gnexp.runner.trainer.GroupTrainer.run", broken)
    with pytest.warns(UserWarning, match="failed: gn-g8.*: RuntimeError: out of order"):
        table = api.train(TINY)
    assert list(table["status"]) == ["failed"]
    assert "out of order" in table["why"][0]


def test_training_happens_in_this_process_unless_workers_are_asked_for(workdir, monkeypatch):
    def elsewhere(*args):
        raise AssertionError("a process was started")

    monkeypatch.setattr("gnexp.runner.process_pool._Worker", elsewhere)
    many = {**TINY, "data.train_limit": 600, "seeds": 2, "batch": 50}  # would be worth processes
    assert list(api.train({**many, "stack": 1})["status"]) == ["complete"] * 2
    with pytest.raises(AssertionError, match="a process was started"):
        api.train({**many, "stack": 1, "workers": 2, "study": "two"})


def test_a_script_without_a_main_guard_is_told_so_by_the_process_it_starts(monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    with pytest.raises(api.Mistake, match='put the call under `if __name__ == "__main__":`'):
        api.train(TINY)


def test_a_hydra_application_finds_its_own_state_after_a_call(workdir, monkeypatch):
    theirs = object()
    monkeypatch.setattr(GlobalHydra.instance(), "hydra", theirs)
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    assert len(compose("train", ["norm=bn,gn", "-m"])[0]) == 2
    assert GlobalHydra.instance().hydra is theirs
    assert HydraConfig.instance().cfg is None


REFUSED = [
    ({"norm": ["gn"], "groups": [7]}, "groups=7 does not divide"),
    ({"batch": []}, "batch=[] is an axis of a grid without a value"),
    ({"batch": object()}, "is a object: give a word, a number or a list"),
    ({3: 4}, "3 is not a key of gnexp train"),
    ({"norm": None}, "norm=null is unknown; did you mean"),
    ({"norm": lambda channels: nn.Identity()}, "norm=<lambda> has no import path"),
    ({"norm": nn.GroupNorm(2, 4)}, "norm=GroupNorm(...) is built already: give norm=GroupNorm"),
    ({"norm": nn.GroupNorm}, "GroupNorm raised TypeError when called with (32): "),
    ({"hydra/launcher": "joblib"}, "hydra/launcher=joblib is for the command line"),
    (["--help"], "--help is for the command line: gnexp train --help"),
    (["norm=gn", 3], "config=['norm=gn', 3] must be a dict, or a list of words"),
    (3, "config=3 must be a dict, or a list of words such as ['norm=gn']"),
    ("norm=gn", "config='norm=gn' must be a dict, or a list of words such as ['norm=gn']"),
]


@pytest.mark.parametrize(("config", "sentence"), REFUSED, ids=[str(s) for _, s in REFUSED])
def test_a_mistake_is_raised_with_one_sentence_and_nothing_is_written(config, sentence, workdir):
    with pytest.raises(api.Mistake) as refused:
        api.train(config)
    assert sentence in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert list(workdir.iterdir()) == []


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"norm": "gn", "norm.eps": 1e-3}, ["norm=gn", "norm.eps=0.001"]),
        ({"norm": ["bn", "gn"], "batch": range(1, 3)}, ["norm=bn,gn", "batch=1,2", "-m"]),
        (OmegaConf.create({"norm": ["bn", "gn"], "data": {"mean": [0, 0, 0]}}),
         ["norm=bn,gn", "data.mean=[0,0,0]", "-m"]),
        ({"seeds": [5, 6]}, ["seeds=[5,6]"]),
        ({"seeds": [[5, 6], [7]]}, ["seeds=[5,6],[7]", "-m"]),
        ({"data": {"name": "npz", "root": Path("/a b/c")}}, ["data=npz", "data.root='/a b/c'"]),
        ({"model": {"library": "timm", "name": "vgg11"}}, ["model=timm", "model.name=vgg11"]),
        ({"norm": {"name": "custom", "_target_": "a.B", "k": 1}},
         ["norm._target_=a.B", "norm.k=1"]),
        ({"norm": nn.Identity}, ["norm._target_=torch.nn.modules.linear.Identity"]),
        ({"norm": {"_target_": nn.Identity, "k": 1}},
         ["norm._target_=torch.nn.modules.linear.Identity", "norm.k=1"]),
        ({"together": [{"batch": 1, "lr": 0.1}, {"batch": 2}]},
         ["together={batch:1,lr:0.1},{batch:2}", "-m"]),
        ({"model.options": {"depth": [2, 2], "stem": "deep"}},
         ["model.options={depth:[2,2],stem:deep}"]),
        ({"zero_gamma": True, "updates": None}, ["zero_gamma=true", "updates=null"]),
        ({"data.title": "1e3", "study": "null"}, ["data.title='1e3'", "study='null'"]),
        (["norm=gn", "-m"], ["norm=gn", "-m"]),
    ],
)  # fmt: skip
def test_a_dict_is_the_words_that_would_be_typed(config, words):
    assert [word.replace("--multirun", "-m") for word in overrides(config)] == words


def test_every_key_that_may_be_a_list_is_one_and_no_list_is_taken_for_a_grid():
    fields = dataclasses.fields(TrainConfig)
    may = {field.name for field in fields if field.type is Any} - {"together"}  # a mapping
    assert may == {key for key in TAKES_A_LIST if "." not in key}


def test_loading_what_is_no_study_says_what_there_is(workdir):
    with pytest.raises(api.Mistake, match="study=main does not exist, and results holds no study"):
        api.load_study("results/main")
    api.train({**TINY, "study": "mine"})
    with pytest.raises(api.Mistake, match="study=mina does not exist in results; there is: mine"):
        api.load_study("results/mina")
    (run,) = (path.parent for path in Path("results/mine").glob("*/result.json"))
    with pytest.raises(api.Mistake, match="is a run; its study is the folder around it"):
        api.load_study(run)
    with pytest.raises(api.Mistake, match="path=None is a NoneType: give a study's folder"):
        api.load_study(None)
    (run / "status.json").write_text("{")
    with pytest.warns(UserWarning, match=r"corrupt: .*status.json"):
        assert len(api.load_study("results/mine")) == 1


def test_check_gives_what_the_command_writes_and_writes_nothing(gnexp, workdir):
    table = api.check("gn", groups=4, claims=["core", "spectrum"], draws=8)
    assert list(workdir.iterdir()) == []
    assert list(table.columns) == list(ROW_COLUMNS)
    words = ("norm=gn", "groups=4", "claims=[core,spectrum]", "draws=8", "workers=1")
    assert gnexp("check", *words).code == 0
    written = pd.read_csv("results/check/check.csv")
    for column in ("norm", "claim", "statement", "expected", "verdict"):
        assert list(table[column]) == list(written[column])


def test_check_takes_a_class_a_function_and_a_partial_alike(workdir):
    def build(channels):
        return nn.GroupNorm(4, channels)

    tables = [
        api.check(module, claims="core", **options)
        for module, options in (
            (build, {"groups": 4}),
            (lambda channels: nn.GroupNorm(4, channels), {"groups": 4}),
            ("gn", {"groups": 4}),
        )
    ]
    assert [table["norm"][0] for table in tables] == [
        "build[groups=4]",
        "own_norm[groups=4]",
        "GN(4)",
    ]
    assert all(set(table["verdict"]) == {"holds"} for table in tables)
    assert set(api.check(build, claims="core", groups=8)["verdict"]) > {"fails"}


def test_options_of_a_class_under_check_are_given_to_it_and_shown(workdir):
    rows = api.check(Plain, claims=["core"], scale=2.0)
    assert set(rows["norm"]) == {"Plain[scale=2.0]"}
    assert rows.set_index("statement")["verdict"]["standardized"] == "fails"
    generator = torch.get_rng_state()
    pd.testing.assert_frame_equal(rows, api.check(Plain, claims=["core"], scale=2.0))
    assert torch.equal(generator, torch.get_rng_state())


@pytest.mark.parametrize(
    ("module", "keys", "sentence"),
    [
        ("gm", {}, "norm=gm is unknown; did you mean gn?"),
        (3, {}, "module=3 is a int: give a norm's name, an nn.Module class, or a function"),
        (nn.GroupNorm(4, 8), {}, "is a GroupNorm: give a norm's name, an nn.Module class"),
        (nn.GroupNorm, {}, "GroupNorm raised TypeError when called with (64): "),
        (lambda channels: channels, {}, "own_norm must return an nn.Module, not int"),
        (lambda channels: nn.Flatten(), {}, "returns the shape (2, 4096) for (2, 64, 8, 8)"),
        (Plain, {"size": 3}, "unexpected keyword argument 'size'"),
        (Plain, {"groups": 7}, "groups=7 does not divide 64 channels"),
        ("gn", {"claims": 5}, "claims=5 must be a list, such as claims="),
        ("gn", {"power": 2}, "norm.power is not an option of norm=gn; did you mean norm.eps?"),
    ],
)
def test_what_cannot_be_checked_is_refused_with_the_reason(module, keys, sentence, workdir):
    with pytest.raises(api.Mistake) as refused:
        api.check(module, **keys)
    assert sentence in str(refused.value)
    assert list(workdir.iterdir()) == []


def test_build_norm_builds_every_norm_of_the_table():
    x = torch.randn(4, 16, 6, 6, generator=torch.Generator().manual_seed(0))
    for name in NORMS:
        assert api.build_norm(name, 16)(x).shape == x.shape


@pytest.mark.parametrize(
    ("name", "channels", "options", "sentence"),
    [
        (3, 16, {}, "norm=3 is unknown"),
        ("gm", 16, {}, "norm=gm is unknown; did you mean gn"),
        ("gn", 16, {"epz": 1}, "epz is not an option of norm=gn; did you mean eps"),
        ("gn", "16", {}, "num_channels='16' must be a whole number from 1 up"),
        ("bn", 0, {}, "num_channels=0 must be a whole number from 1 up"),
        ("gn", 16, {"num_groups": 4.0}, "num_groups=4.0 must be a whole number, such as 8"),
        ("gn", 16, {"eps": "small"}, "eps='small' must be a number, such as 1e-05"),
        ("brn", 16, {"momentum": None}, "momentum=None must be a number, such as 0.1"),
        ("gbn", 16, {"ghost_batch": "all"}, "ghost_batch='all' must be a whole number, such as 8"),
    ],
)
def test_what_no_norm_can_be_built_from_is_refused_in_a_sentence(name, channels, options, sentence):
    with pytest.raises(ValueError) as refused:
        api.build_norm(name, channels, **options)
    assert str(refused.value).startswith(sentence)


def test_values_that_torch_takes_for_an_option_are_taken_here():
    assert api.build_norm("bn", np.int64(8), momentum=None).momentum is None
    assert api.build_norm("brn", 8, total_examples=100, rmax=2).rmax == 2
    assert api.build_norm("gn", 8, num_groups=np.int64(2), eps=np.float32(0.5)).eps == 0.5
