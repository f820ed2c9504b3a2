"""`gnexp measure what=[cost]`: memory of an update, and the largest batch that fits."""

import csv

import pytest
import torch

from gnexp.measure.memory import training_bytes
from gnexp.models.resnet import build_model
from gnexp.norms.registry import build_norm


def rows_of(workdir):
    with open(workdir / "results" / "cost" / "cost.csv", newline="") as file:
        return {row["norm"]: row for row in csv.DictReader(file)}


def test_every_norm_gets_its_bytes_and_the_largest_batch_that_fits(gnexp, workdir):
    answer = gnexp(
        *("measure", "what=[cost]", "cost.model=resnet8", "cost.norms=[bn,gn]", "cost.size=64"),
        *("cost.memory_gb=0.05", "cost.batches=[1,4]"),
    )
    assert answer.code == 0, answer.err
    rows = rows_of(workdir)
    assert list(rows) == ["bn", "gn"]
    for norm, row in rows.items():
        model = build_model("resnet8", lambda c, norm=norm: build_norm(norm, c), 10)
        assert int(row["batch_4_bytes"]) == training_bytes(model, (3, 64, 64), 4)
        largest, memory = int(row["largest_batch"]), 0.05 * 2**30
        assert training_bytes(model, (3, 64, 64), largest) <= memory
        assert training_bytes(model, (3, 64, 64), largest + 1) > memory
        assert f"{int(row['batch_1_bytes']) / 2**20:,.1f}" in answer.out
    assert "fits 0.05 GiB" in (workdir / "results" / "cost" / "cost.md").read_text()


def test_a_memory_in_which_not_even_one_image_fits_says_so(gnexp):
    answer = gnexp("measure", "what=[cost]", "cost.norms=[gn]", "cost.memory_gb=0.001")
    assert answer.code == 0
    assert "not even 1" in answer.out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["cost.model=resnet5"], "cost: model=resnet5 is unknown; did you mean resnet56"),
        (["cost.norms=[gm]"], "cost.norms: gm is unknown; valid: bn, gn, ln, in, "),
        (["cost.norms=gn"], "cost.norms=gn must be a list of names"),
        (["cost.groups=7"], "groups=7 does not divide"),
        (["cost.size=4"], "cost.size=4 must be a whole number of at least 8 pixels"),
    ],
)
def test_a_mistake_in_the_keys_of_the_cost_gets_one_sentence(words, sentence, gnexp, workdir):
    answer = gnexp("measure", "what=[cost]", *words)
    assert answer.code == 2
    assert sentence in answer.err
    assert len(answer.err.splitlines()) == 1
    assert not (workdir / "results").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_memory_is_measured(gnexp, workdir):
    answer = gnexp("measure", "what=[cost]", "cost.norms=[gn]", "device=cuda")
    assert answer.code == 0
    assert rows_of(workdir)["gn"]["counted"] == "measured"
