"""The answer claims what its intervals bear, at every batch size once, and nothing else.

Sentences of studies with a known truth stand in test_answer_truths.py.
"""

import importlib.util
import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from evidence_series import analysis_of, draw, make_series

from gnexp.analysis.comparisons import between, settings
from gnexp.analysis.inference import AHEAD, simultaneous
from gnexp.report.text.answer import answer

_file = Path(__file__).parents[2] / "scripts" / "answer_errors.py"
_spec = importlib.util.spec_from_file_location("answer_errors", _file)
simulation = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(simulation)

BN = {1: 30, 2: 66, 4: 75, 16: 80, 64: 80}
FLAT = dict.fromkeys(BN, 78)


def bn(means=BN, **options):
    return make_series("bn", draw(means, seed=1, **options))


def gn(means=FLAT, groups=8, seed=2, **options):
    return make_series("gn", draw(means, seed=seed, **options), groups=groups)


def told(*lines, **options):
    sentences = answer(analysis_of(lines, **options))
    for sentence in sentences:
        assert sentence.isascii()
        assert sentence.endswith(".")
        bare = re.sub(r"^(With|Trained) [^:]*: ", "", sentence)
        assert len(bare.split()) <= 45, sentence
        assert not re.search(r"\bnan\b|\bnull\b|\bNone\b|[(][0-9a-f]{6}[)]", sentence), sentence
        assert not re.search(r"\.\.|;;|  |\( |-0\.0\b", sentence), sentence
    return sentences


def test_the_numbers_are_those_of_the_simultaneous_interval():
    lines = [bn(), gn()]
    one = settings(lines)[0].pairs[0][1][0]
    lo, hi = (
        f"{100 * one.difference.lo_simultaneous:.1f}",
        f"{100 * one.difference.hi_simultaneous:.1f}",
    )
    size = f"{100 * one.difference.difference:.1f} points at batch 1"
    assert f"{size} (95 % interval {lo} to {hi}, n = 5 each)" in told(*lines)[0]


def decided(lines):
    """Return {batch: (means, {(i, j): lead of i over j})} of decided leads over half a point."""
    (setting,) = settings(lines)
    found = {}
    asked = [
        (a.key["batch"], i, j, a, b)
        for (i, one), (j, other) in itertools.combinations(enumerate(lines), 2)
        for a in one.cells
        for b in other.cells
        if a.key["batch"] == b.key["batch"]
    ]
    for with_bn in (True, False):
        family = [pair for pair in asked if (lines[pair[1]].norm == "bn") == with_bn]
        differences = simultaneous([between(a, b, setting.samples) for *_, a, b in family])
        for (batch, i, j, *_), d in zip(family, differences):
            leads = found.setdefault(batch, {})
            if d.p_holm <= 0.05 and abs(d.difference) > 0.005:
                leads[(i, j) if d.verdict == AHEAD else (j, i)] = abs(d.difference)
    return found


def batches_of(sentence, every):
    """Return the batch sizes that a sentence begins with."""
    where = re.match(
        r"(At every batch size|Up to batch|From batch|At batch)([ 0-9,and]*)", sentence
    )
    if not where:
        return []
    numbers = [int(n) for n in re.findall(r"\d+", where[2])]
    if where[1] == "At every batch size":
        return list(every)
    if where[1] == "Up to batch":
        return [b for b in every if b <= numbers[0]]
    return [b for b in every if b >= numbers[0]] if where[1] == "From batch" else numbers


@pytest.mark.parametrize("seed", range(20))
def test_every_batch_size_is_told_once_and_no_norm_is_named_for_use_that_another_leads(seed):
    rng = np.random.default_rng([seed, 5])
    norms = ("bn", "gn", "ln", "in", "frn")
    names = ("BN", "GN", "LN", "IN", "FRN")
    level = rng.normal(70, 4, (5, 4)) if seed % 2 else rng.normal(70, 4, (5, 1)).repeat(4, 1)
    lines = [
        make_series(norm, {b: list(rng.normal(m, 1, 4)) for b, m in zip((1, 2, 8, 32), level[i])})
        for i, norm in enumerate(norms)
    ]
    found, seen, beside = decided(lines), [], []
    for sentence in told(*lines):
        here = batches_of(sentence, found)
        if "which is not decided" in sentence:  # it may stand beside a recommendation
            beside += here
            continue
        if "see the tables" in sentence:
            here = [int(n) for n in re.findall(r"\d+", sentence)]
        seen += here
        use = re.search(r"use ([^:(]*?)(?: \(|, not |:)", sentence)
        first = names.index(use[1].split(",")[0].split(" or ")[0]) if use else None
        for batch in here if use else ():
            leads = found[batch]
            for name in re.findall(r"BN|GN|LN|IN|FRN", use[1]):
                assert not any((i, names.index(name)) in leads for i in range(5)), sentence
            out = re.search(r", not ([^:]*):", sentence)
            for name in re.findall(r"BN|GN|LN|IN|FRN", out[1]) if out else ():
                assert any((i, names.index(name)) in leads for i in range(5)), sentence
            assert any((first, names.index(name)) in leads for name in names), sentence
            if "every other norm" in sentence:
                assert all((first, j) in leads for j in range(5) if j != first), sentence
    assert len(seen) == len({*seen})
    assert {*seen, *beside} == {1, 2, 8, 32}


@pytest.mark.parametrize(
    ("norms", "truth"), [(2, simulation.EQUAL), (2, simulation.APART), (5, simulation.EQUAL)]
)
def test_of_equal_norms_any_false_claim_is_made_in_at_most_10_percent_of_studies(norms, truth):
    # The large simulation, 2,000 studies each: scripts/answer_errors.py, results/LOG.md.
    rng, studies, batches = np.random.default_rng(norms), 200, (1, 8, 32)
    claims = 0
    for _ in range(studies):
        lines = simulation.study(rng, norms, batches, 4, "equal", truth)
        claims += any(simulation.false_claims(lines, truth))
    assert claims <= studies * 0.10 + 2 * np.sqrt(studies * 0.10 * 0.90)


def test_a_lead_below_the_margin_is_used_where_the_margin_is_smaller():
    lines = [bn(dict.fromkeys(BN, 80), sd=0.01), gn(dict.fromkeys(BN, 80.4), sd=0.01)]
    assert "use GN with 8 groups: it leads BN by 0.4 points" in told(*lines, margin=0.003)[0]


@pytest.mark.parametrize("at_1", [79.6, 78.0])
def test_a_norm_is_not_the_one_to_use_where_another_is_decidedly_above_it(at_1):
    batches = {1: at_1, 8: 70, 32: 65}
    other = make_series("in", draw(batches, seed=5))
    lines = [bn({1: 40, 8: 60, 32: 60}), gn({1: 78, 8: 79, 32: 79}), other]
    first, second = told(*lines)[:2]
    assert second.startswith("From batch 8 up, use GN with 8 groups: it leads every other norm, BN")
    if at_1 == 79.6:
        assert first.startswith("At batch 1, use IN: it leads every other norm, BN by ")
    else:
        assert re.match(r"At batch 1, use (GN with 8 groups or IN|IN or GN with 8 groups) ", first)


def test_a_norm_that_is_tied_at_one_batch_of_the_stretch_is_named_with_it():
    ln = make_series("ln", draw({1: 78, 2: 78.3, 4: 60}, seed=3))
    in_ = make_series("in", draw(dict.fromkeys((1, 2, 4), 50), seed=4))
    first = told(gn({1: 78, 2: 78, 4: 78}), ln, in_, bn({1: 30, 2: 30, 4: 77.9}))[0]
    assert first.startswith("Up to batch 2, use ")
    assert "not BN or IN: the first leads BN by " in first


def test_a_norm_that_leads_nobody_is_no_leader_though_its_mean_over_a_stretch_is_the_highest():
    z = np.array([-1.27, -0.5, 0.0, 0.5, 1.27])
    levels = {"ln": ((80, 0.3), (78, 3)), "in": ((78, 3), (80, 0.3)), "frn": ((77, 0.3),) * 2}
    levels["gn"] = ((79.8, 3),) * 2  # scatters, and so leads nobody
    lines = [
        make_series(norm, {batch: list(m + sd * z) for batch, (m, sd) in zip((4, 8), of)})
        for norm, of in levels.items()
    ]
    first, second = told(*lines)[:2]
    assert first.startswith("At batch 4, use LN, GN or IN (statistically tied), not FRN: the first")
    assert second.startswith(
        "At batch 8, use IN, GN or LN (statistically tied), not FRN: the first"
    )


def test_a_norm_with_one_seed_at_a_batch_is_named_and_not_counted_among_those_compared():
    mixed = make_series("ln", {16: [90.0], **draw({64: 70}, seed=3)})
    sentences = told(bn({16: 80, 64: 80}), gn({16: 70, 64: 70}), mixed)
    assert "LN has one seed at batch 16 and is not compared there." in sentences
    assert "every other norm," not in " ".join(sentences)


def test_a_tie_of_several_norms_names_them():
    lines = [make_series(n, draw(FLAT, sd=1, seed=i)) for i, n in enumerate(("bn", "ln", "in"))]
    first = told(*lines)[0]
    assert first.startswith("At every batch size (1 to 64) the data do not decide between ")
    assert all(name in first for name in ("BN", "LN", "IN"))
    assert re.search("seeds each would decide it|more than 30 seeds each would be needed", first)
    behind = make_series("none", draw(dict.fromkeys(BN, 40), seed=9))
    first = told(*lines, behind)[0]
    assert "not none (no normalization): the first leads none (no normalization) by" in first


def test_whose_learning_rate_was_not_tuned_is_said_where_others_were():
    def lines(of_bn, of_gn):
        ours = draw(BN, seed=1), draw(FLAT, seed=2)
        return make_series("bn", ours[0], tuned=of_bn), make_series("gn", ours[1], tuned=of_gn)

    assert "at learning rates tuned for each" in " ".join(told(*lines(True, True)))
    assert "at one learning rate for all (0.1, not tuned)" in " ".join(told(*lines(False, False)))
    assert "at learning rates tuned for each" in " ".join(told(*lines(None, None), tuned=[None]))
    sentences = told(*lines(False, True))
    assert sentences[0].startswith("Up to batch 4, use GN: it leads BN by ")
    assert "The rate of BN was not tuned." in sentences
    ln = make_series("ln", draw(FLAT, seed=3), tuned=False)
    assert "The rates of BN and LN were not tuned." in told(*lines(False, True), ln)
    partly = {1: True, 2: True, 4: True, 16: True, 64: False}
    assert "The rate of GN was not tuned at batch 64." in told(*lines(True, partly))


def test_what_tells_a_norm_from_another_of_its_kind_is_said_and_nothing_else():
    one = {"norm.momentum_rule": "batches", "init_from": "gn-g8 (1b3bdc)"}
    two = {"norm.momentum_rule": "examples", "init_from": "gn-g8 (1b3bdc)"}
    lines = [make_series("bn", draw(BN, seed=1), **one), make_series("bn", draw(FLAT), **two)]
    assert told(*lines)[0].startswith("Up to batch 4, use BN (momentum_rule=examples): it leads BN")


def test_equal_accuracies_of_all_seeds_decide_nothing():
    lines = [make_series("bn", {1: [60.0] * 3}), make_series("gn", {1: [70.0] * 3})]
    first, second, *_ = told(*lines)
    assert "all seeds agree exactly" in first
    assert second == "Train more seeds of each."


def test_norms_without_a_batch_size_in_common_are_not_compared():
    first = told(bn({16: 80, 64: 80}), gn({1: 78, 2: 78}))[0]
    assert first.startswith(
        "Nothing can be compared: BN at batch 16 and 64 and GN with 8 groups at"
    )


def test_a_bn_that_diverged_is_at_chance_and_said_to_have_diverged():
    first = told(make_series("bn", {1: [None] * 5, 2: draw({2: 60})[2]}), gn({1: 78, 2: 78}))[0]
    assert "BN diverged in 5 of 5, counted at chance)" in first
    assert re.search(r"leads BN by 6[78]\.\d points at batch 1", first)


def test_leads_that_go_to_and_fro_are_joined_by_leader():
    sentences = told(bn(FLAT), gn({1: 90, 2: 60, 4: 90, 16: 60, 64: 90}))
    assert sentences[0].startswith("At batch 1, 4 and 64, use GN with 8 groups: it leads BN by")
    assert sentences[1].startswith("At batch 2 and 16, use BN: it leads GN with 8 groups by")


def test_a_bn_that_was_trained_but_not_tuned_is_not_said_to_be_untrained():
    lines = [make_series("ln", draw(BN, seed=3), lr="tuned", tuned=True)]
    lines += [make_series("gn", draw(FLAT, seed=4), lr="tuned", tuned=True)]
    lines += [make_series("bn", draw({1: 40}, seed=i), lr=i, tuned=False) for i in (1, 2)]
    sentences = told(*lines)
    assert sentences[0].startswith("With lr=tuned: up to batch 4, use GN: it leads LN by ")
    assert "With lr=tuned: BN was not tuned." in sentences


def test_of_many_settings_the_three_largest_are_answered_and_the_rest_counted():
    lines = []
    for size in (1, 2, 3, 4, 5):
        means = dict.fromkeys(list(BN)[:size], 78)
        lines += [
            make_series(n, draw(means, seed=i), epochs=size) for i, n in enumerate(("bn", "ln"))
        ]
    sentences = told(*lines)
    answered = list(dict.fromkeys(re.findall(r"With epochs=\d", " ".join(sentences))))
    assert answered == ["With epochs=5", "With epochs=4", "With epochs=3"]
    assert "2 more settings are in the tables." in sentences


def test_settings_that_differ_in_images_alone_are_told_by_number():
    lines = [
        make_series(norm, draw(FLAT, seed=k), **{"data.checksum": checksum})
        for checksum in ("a1b2c3d4", "e5f6a7b8")
        for k, norm in enumerate(("bn", "ln"))
    ]
    text = " ".join(told(*lines))
    assert "With images (version 1): " in text
    assert "With images (version 2): " in text
    assert "a1b2c3d4" not in text


def test_a_cell_without_a_finished_seed_is_missing():
    lines = [bn({1: 60, 8: 60, 64: 60}), gn({1: 78, 8: 78})]
    lines[1].cells.append(make_series("gn", {64: []}, groups=8).cells[0])
    sentences = told(*lines)
    assert sentences[0].startswith(
        "At every batch size (1 and 8), use GN with 8 groups: it leads BN"
    )
    assert "GN with 8 groups is missing at batch 64." in sentences


@pytest.mark.parametrize("lines", [[], [make_series("bn", {})], [make_series("bn", {1: []})]])
def test_an_empty_study_has_no_answer_yet(lines):
    assert answer(analysis_of(lines)) == ["No seed is finished yet."]
