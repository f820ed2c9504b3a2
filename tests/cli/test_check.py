"""`gnexp check`: what it prints and writes, and what it says of norms that misbehave."""

import pytest
from run_files import table

from gnexp.analysis.check_result import ROW_COLUMNS

VERDICTS = ("holds", "fails", "undecided", "not measured")

BAD_NORMS = """
import torch
from torch import nn


class Affine(nn.Module):
    def __init__(self, num_channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))


class NotAModule:
    def __init__(self, num_channels):
        pass


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise ArithmeticError("no gradient here")


class Groups(nn.Module):
    def __init__(self, num_channels, groups=8):
        super().__init__()
        self.inner = nn.GroupNorm(groups, num_channels)
        self.weight, self.bias = self.inner.weight, self.inner.bias

    def forward(self, x):
        return self.inner(x)


def require_two(x):
    if len(x) < 2:
        raise ValueError("at least two examples, please")
    return x
"""
# What their forward pass returns.
BAD_FORWARDS = {
    "OtherShape": "x[:, :, 1:]",
    "OtherDtype": "x.half()",
    "OtherDevice": "x.to('meta')",
    "Nan": "x / 0 * 0",
    "Pair": "(x, x)",
    "Raises": "{}['statistics']",
    "RaisesBackward": "Broken.apply(x)",
    "NeedsTwo": "require_two(x)",
}
for name, returned in BAD_FORWARDS.items():
    BAD_NORMS += (
        f"\n\nclass {name}(Affine):\n    def forward(self, x):\n        return {returned}\n"
    )


@pytest.fixture
def check(gnexp, own_module):
    """Run `gnexp check` in this process, beside a file of norms that misbehave."""
    name = own_module(BAD_NORMS)
    return lambda *words: gnexp(
        "check", "workers=1", *(w.replace("bad.", f"{name}.") for w in words)
    )


def test_one_norm_is_printed_in_full_and_written_as_csv_and_markdown(check, workdir):
    answer = check("claims=[core,spectrum]")
    assert answer.code == 0
    assert answer.err == ""
    assert "1. Core mechanism" in answer.out
    assert "2. Spectrum" in answer.out
    folder = workdir / "results" / "check"
    rows = table(folder / "check.csv")
    assert list(rows[0]) == list(ROW_COLUMNS)
    assert {row["claim"] for row in rows} == {"1", "2"}
    assert all(row["verdict"].startswith(VERDICTS) for row in rows)
    assert all(row["text"] and row["what"] and row["expected"] and row["measured"] for row in rows)
    page = (folder / "check.md").read_text()
    assert "## 1. Core mechanism" in page
    assert f"check: {folder.relative_to(workdir) / 'check.md'}" in answer.out
    for row in rows:
        assert row["measured"].replace("|", "\\|").replace("_", "\\_")[:20] in page
    names = [p.name for p in folder.iterdir() if p.name != "provenance.json"]
    before = {name: (folder / name).read_bytes() for name in names}
    check("claims=[core,spectrum]")
    assert {name: (folder / name).read_bytes() for name in names} == before


def test_several_norms_make_one_table_of_verdicts_with_a_column_each(check, workdir):
    answer = check("-m", "norm=bn,gn,none", "claims=[core]")
    assert answer.code == 0
    rows = table(workdir / "results/check/check.csv")
    assert list(dict.fromkeys(row["norm"] for row in rows)) == ["BN", "GN(8)", "no norm"]
    by_norm = {
        norm: {r["statement"]: r["verdict"] for r in rows if r["norm"] == norm}
        for norm in ("BN", "GN(8)", "no norm")
    }
    assert len({tuple(verdicts) for verdicts in by_norm.values()}) == 1  # the same statements
    assert by_norm["GN(8)"]["standardized"] == "holds"
    assert by_norm["BN"]["standardized"].startswith("holds only when")
    assert by_norm["no norm"]["standardized"] == "fails"
    summary = (workdir / "results" / "check" / "summary.md").read_text()
    assert "| BN | GN(8) | no norm |" in summary


def test_options_that_are_not_the_default_tell_two_columns_apart(check, workdir):
    check("-m", "norm=gn", "groups=4,8", "claims=[core]", "norm.eps=1e-5,1e-3")
    rows = table(workdir / "results/check/check.csv")
    norms = list(dict.fromkeys(row["norm"] for row in rows))
    assert norms == ["GN(4)", "GN(4)[eps=0.001]", "GN(8)", "GN(8)[eps=0.001]"]


@pytest.mark.parametrize(
    ("norm", "sentence"),
    [
        ("NotAModule", "NotAModule cannot be built: norm._target_="),
        ("OtherShape", "OtherShape returned the shape (4, 64, 4, 7) for (4, 64, 5, 7)"),
        ("OtherDtype", "OtherDtype returned the dtype torch.float16 for torch.float64"),
        ("OtherDevice", "OtherDevice returned the device meta for cpu"),
        ("Nan", "Nan returned values that are not finite, for finite ones"),
        ("Pair", "Pair returned a tuple, not one tensor"),
        ("Raises", "raised KeyError ('statistics') in a forward pass of (4, 64, 5, 7) in float64"),
        ("RaisesBackward", "RaisesBackward raised ArithmeticError: no gradient here"),
    ],
)
def test_a_norm_that_misbehaves_is_named_in_a_sentence_with_the_claim(norm, sentence, check):
    answer = check(f"norm._target_=bad.{norm}", "claims=[core]")
    assert answer.code == 1
    told = [line for line in answer.out.splitlines() if line.startswith("not measured")]
    assert len(told) == 1
    assert told[0].startswith("not measured, claim 1: ")
    assert sentence in told[0]
    assert "Traceback" not in answer.out + answer.err


def test_what_a_norm_does_in_one_claim_does_not_keep_the_others_from_running(check, workdir):
    answer = check("norm._target_=bad.NeedsTwo", "claims=[core,batch_independence]")
    assert answer.code == 1
    assert "not measured, claim 3: NeedsTwo raised ValueError (" in answer.out
    rows = table(workdir / "results/check/check.csv")
    assert {r["verdict"] for r in rows if r["claim"] == "3"} == {"not measured"}
    assert "not measured" not in {r["verdict"] for r in rows if r["claim"] == "1"}
    assert "please" in (workdir / "results" / "check" / "errors.txt").read_text()


def test_a_norm_of_ones_own_that_takes_groups_is_held_to_the_groups_it_was_told(check, workdir):
    answer = check("norm._target_=bad.Groups", "norm.groups=4", "claims=[core]")
    assert answer.code == 0
    rows = {row["statement"]: row for row in table(workdir / "results/check/check.csv")}
    assert rows["standardized"]["norm"] == "Groups[groups=4]"
    assert rows["standardized"]["verdict"] == "holds"
    assert rows["forward"]["verdict"] == "holds"
    check("norm._target_=bad.Groups", "groups=4", "claims=[core]")  # it is not told: it has 8
    rows = {row["statement"]: row for row in table(workdir / "results/check/check.csv")}
    assert rows["standardized"]["verdict"] == "fails"
    assert rows["forward"]["verdict"] == "fails"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["groups=7"], "channels=64: groups=7 does not divide 64 channels; valid: 1, 2, 4"),
        (["claims=[cores]"], "claims=[cores] is unknown; did you mean core?"),
        (["draws=2"], "draws=2 must be a whole number of at least 4, such as draws=64"),
        (["reference=gm"], "reference=gm is unknown; did you mean gn?"),
        (["norm._target_=bad.Missing"], "has no Missing"),
        (["name=../x"], "name='../x' must be 1 to 100 letters"),
        (["-m", "draws=8,16"], "draws= takes one value per check: its norms share one table"),
        (["data=npz"], "data.root"),
    ],
)
def test_a_mistake_gets_one_sentence_and_nothing_is_written(words, sentence, check, workdir):
    answer = check(*words)
    assert answer.code == 2
    assert sentence in answer.err
    assert len(answer.err.splitlines()) == 1
    assert "Traceback" not in answer.err
    assert not (workdir / "results").exists()


def test_a_folder_that_refuses_files_is_named_and_the_result_still_printed(
    check, workdir, monkeypatch
):
    from gnexp.report.check import report

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report, "write_whole", full)
    answer = check("claims=[core]")
    assert answer.code == 1
    assert "1. Core mechanism" in answer.out
    assert "out=results: results/check cannot be written (No space left on device)" in answer.err
