"""A report opens its study once, and computes each part of its analysis once."""

import functools
import sys
from collections import Counter
from pathlib import Path

import pytest
from test_report import add_gradients, add_run, config

from gnexp.cli.commands import report  # noqa: F401
from gnexp.report import comparison_report, study_report  # noqa: F401

# Made from a whole study: the module of gnexp, and its function.
OPENED = ("store.study", "load_study")
PARTS = [
    *[("analysis.cells", name) for name in ("cells", "series", "run_rows")],
    *[("analysis.comparisons", name) for name in ("settings", "all_samples", "flatness_rows")],
    *[("analysis.comparisons", name) for name in ("norm_rows", "pair_rows")],
    *[("analysis.gradient_noise", name) for name in ("gradient_rows", "exponent_rows")],
    *[("analysis.lr_search", name) for name in ("tuned_cells", "at_chosen_lr", "tuning_rows")],
    *[("analysis.leaders", "places"), ("analysis.accuracy_drop", "loss_rows")],
    ("analysis.batch_vs_update_batch", "two_batches_rows"),
    ("analysis.corruption_robustness", "summary_rows"),
    ("report.fingerprint", "fingerprint"),
]
OTHERS = [OPENED, ("store.study", "record_of"), ("analysis.compare_studies", "match")]


@pytest.fixture
def counted(gnexp, monkeypatch):
    """Call a command and return how often each of PARTS and OTHERS ran, whoever called it."""
    calls = Counter()

    def counting(part, function):
        @functools.wraps(function)
        def count(*args, **options):
            calls[part] += 1
            return function(*args, **options)

        return count

    for part in (*PARTS, *OTHERS):
        function = getattr(sys.modules[f"gnexp.{part[0]}"], part[1])
        count = counting(part, function)
        for name, module in [*sys.modules.items()]:
            if name.startswith("gnexp.") and vars(module).get(part[1]) is function:
                monkeypatch.setattr(module, part[1], count)

    def call(*words):
        calls.clear()
        answer = gnexp(*words, "report.format=svg")
        assert answer.code == 0, answer.err
        return dict(calls)

    return call


def study_of(name):
    for norm in ("bn", "gn", "ln"):
        for batch in (2, 32):
            run = add_run(Path("results") / name, f"{norm}-b{batch}", config(norm, batch))
            add_gradients(run, norm, (2, 8, 32))


def test_a_report_opens_its_study_once_and_computes_each_part_once(counted):
    study_of("one")
    calls = counted("report", "study=one")
    assert calls == {**dict.fromkeys([*PARTS, OPENED], 1), ("store.study", "record_of"): 6}
    again = counted("report", "study=one", "logger=tensorboard")  # fresh: the answer alone is made
    assert again[OPENED] == again["analysis.comparisons", "settings"] == 1
    assert ("analysis.gradient_noise", "gradient_rows") not in again


def test_a_comparison_opens_each_study_once(counted):
    study_of("one")
    study_of("other")
    calls = counted("report", "study=[one,other]")
    assert calls[OPENED] == 2
    assert calls["store.study", "record_of"] == 12
    assert calls["analysis.compare_studies", "match"] == 1
    assert calls["analysis.comparisons", "settings"] == 4  # of each study, and of its pairs
