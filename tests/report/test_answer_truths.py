"""Studies with a known truth, and of each every sentence that a careful statistician would say.

The sentences were written before the code that makes them. In a template `#` stands for a number
with one decimal and `@` for a number of seeds ("5", "4 to 7"); every other letter is compared.
"""

import re

import pytest
from evidence_series import analysis_of, make_series

from gnexp.report.text.answer import answer

MOST_WORDS = 45
Z = (-1.27, -0.5, 0.0, 0.5, 1.27)  # five values with mean 0 and standard deviation 1
BETWEEN = "(95 % interval # to #, n = 5 each)"
TRAINED = (
    "Trained for 40 passes over 5,000 images, at one learning rate for all (0.1, not tuned); "
    "final training accuracy 90 %."
)
TOGETHER = (
    "Each update used one batch, so effects of batch size are those of norm and optimizer together."
)


def values(means, sd=0.3, n=5):
    """Return {batch: n accuracies} with exactly this mean and about this spread."""
    return {batch: [mean + sd * z for z in Z[:n]] for batch, mean in means.items()}


def series(norm, means, sd=0.3, **options):
    return make_series(norm, values(means, sd), **{"test": 10_000, **options})


def gn(means, sd=0.3, **options):
    return series("gn", means, sd, groups=8, **options)


def flat(mean, *batches):
    return dict.fromkeys(batches, mean)


SOURCES = (
    "(Holm); a typical standard error is # points from seeds and # from test images (an upper "
    "bound); a lead counts beyond 0.5 points."
)


def method(with_bn, others=0):
    said = [f"{with_bn} comparison{'s' * (with_bn != 1)} with BN"] * bool(with_bn)
    said += [f"{others} between {'other ' * bool(with_bn)}norms"] * bool(others)
    return f"Intervals are simultaneous over {' and '.join(said)} {SOURCES}"


def assert_answer(lines, *expected, beside=()):
    """Compare every sentence; beside: the comparisons with BN and between others, where tested."""
    expected = [*expected, *([TRAINED, TOGETHER, method(*beside)] if beside else ())]
    told = answer(analysis_of(lines))
    print("\n".join(told))
    assert len(told) == len(expected), told
    for sentence, template in zip(told, expected):
        pattern = re.escape(template).replace(r"\#", r"-?\d+\.\d+").replace("@", r"\d+(?: to \d+)?")
        assert re.fullmatch(pattern, sentence), f"\n{sentence}\n{template}"
        assert len(sentence.split()) <= MOST_WORDS


def test_a_clear_winner():
    assert_answer(
        [
            series("bn", flat(60, 1, 8, 64)),
            gn(flat(78, 1, 8, 64)),
            series("ln", flat(70, 1, 8, 64)),
        ],
        "At every batch size (1, 8 and 64), use GN with 8 groups: it leads every other "
        f"norm, BN by # points at batch 1 {BETWEEN}.",
        beside=(6, 3),
    )


def test_a_tie_of_three_with_bn_ruled_out():
    batches = (1, 8, 64)
    norms = [series("in", flat(77.9, *batches)), series("ln", flat(78.0, *batches))]
    assert_answer(
        [series("bn", flat(60, *batches)), gn(flat(78.1, *batches)), *norms],
        "At every batch size (1, 8 and 64), use GN with 8 groups, LN or IN (statistically "
        f"tied), not BN: the first leads BN by # points at batch 1 {BETWEEN}.",
        beside=(9, 9),
    )


def test_a_tie_of_five_names_three_and_counts_the_rest():
    batches = (1, 8)
    tied = {"ln": 78.3, "in": 78.2, "rms": 78.1, "frn": 78.0}
    norms = [series(norm, flat(mean, *batches)) for norm, mean in tied.items()]
    beaten = {"dyt": 50, "gbn": 40, "none": 45, "brn": 30}
    norms += [series(norm, flat(mean, *batches)) for norm, mean in beaten.items()]
    assert_answer(
        [series("bn", flat(60, *batches)), gn(flat(78.4, *batches)), *norms],
        "At every batch size (1 and 8), use GN with 8 groups, LN, IN or 2 more "
        "(statistically tied), not BN, BRN or 3 more: the first leads BN by # points at batch 1 "
        f"{BETWEEN}.",
        beside=(18, 72),
    )


def test_a_crossing():
    assert_answer(
        [series("bn", {1: 30, 4: 70, 16: 84, 64: 84}), gn(flat(78, 1, 4, 16, 64))],
        f"Up to batch 4, use GN with 8 groups: it leads BN by # points at batch 1 {BETWEEN}.",
        f"From batch 16 up, use BN: it leads GN with 8 groups by # points at batch 64 {BETWEEN}.",
        beside=(4,),
    )


def test_a_crossing_with_an_open_middle():
    assert_answer(
        [series("bn", {1: 30, 4: 78.1, 16: 84}), gn(flat(78.5, 1, 4, 16))],
        f"At batch 1, use GN with 8 groups: it leads BN by # points {BETWEEN}.",
        "At batch 4 the data do not decide: highest mean GN with 8 groups, # points above BN "
        f"{BETWEEN}; 10,000 test images are too few to decide it.",
        f"At batch 16, use BN: it leads GN with 8 groups by # points {BETWEEN}.",
        beside=(3,),
    )


def test_bn_scattered_at_batch_1_is_a_large_lead_that_three_seeds_do_not_decide():
    bn = {1: [10.0, 10.0, 20.8], 2: [35.0, 36.0, 37.0], 8: [49.0, 50.0, 51.0]}
    gn_values = {1: [37.2, 38.0, 38.8], 2: [37.5, 38.5, 39.5], 8: [38.4, 39.2, 40.0]}
    ln = {1: [32.0, 33.0, 34.0], 2: [32.0, 33.0, 34.0], 8: [32.0, 33.0, 34.0]}
    gn_series = make_series("gn", gn_values, groups=8)
    told = answer(analysis_of([make_series("bn", bn), gn_series, make_series("ln", ln)]))
    (large,) = [sentence for sentence in told if "scatters" in sentence]
    found = re.fullmatch(
        r"At batch 1, GN with 8 groups is 24\.4 points above BN \(95 % interval -?\d+\.\d to "
        r"\d+\.\d, n = 3 each\), which is not decided because BN scatters there: (\d+)(?: to "
        r"(\d+))? seeds each would decide it\.",
        large,
    )
    assert found, large
    assert int(found[1]) <= 5 <= int(found[2] or found[1])
    assert not [s for s in told if s.startswith("At batch 1") and re.search(r"\buse .*BN", s)]


def test_all_norms_at_chance():
    assert_answer(
        [series("bn", flat(10.0, 1, 8)), gn(flat(10.3, 1, 8)), series("ln", flat(9.9, 1, 8))],
        "At every batch size (1 and 8), no norm is decidedly above chance (10 %), so "
        "none is recommended.",
        beside=(4, 2),
    )


def test_chance_at_one_batch_size_alone():
    assert_answer(
        [series("bn", {1: 10.0, 8: 60}), gn({1: 10.3, 8: 78})],
        "At batch 1, no norm is decidedly above chance (10 %), so none is recommended.",
        f"At batch 8, use GN with 8 groups: it leads BN by # points {BETWEEN}.",
        beside=(2,),
    )


def test_a_lead_of_a_fifth_of_a_point_is_decided_and_does_not_count():
    many = {"sd": 0.02, "test": 10_000_000}
    assert_answer(
        [series("bn", flat(80.0, 1, 8), **many), gn(flat(80.2, 1, 8), **many)],
        "At every batch size (1 and 8), no lead counts: highest mean GN with 8 "
        f"groups, 0.2 points above BN at batch 1 {BETWEEN}, which is decided but below 0.5 points.",
        beside=(2,),
    )


def test_a_norm_behind_by_less_than_the_margin_may_be_used_as_well():
    many = {"sd": 0.02, "test": 10_000_000}
    norms = [gn(flat(80.2, 1, 8), **many), series("in", flat(70.0, 1, 8), **many)]
    assert_answer(
        [series("bn", flat(80.0, 1, 8), **many), *norms],
        "At every batch size (1 and 8), use GN with 8 groups or BN (within 0.5 points), "
        f"not IN: the first leads IN by 10.2 points at batch 1 {BETWEEN}.",
        beside=(4, 2),
    )


def test_one_seed_of_each():
    assert_answer(
        [make_series("bn", flat([60.0], 1, 8)), make_series("gn", flat([78.0], 1, 8), groups=8)],
        "One seed decides nothing: GN with 8 groups has the highest mean, 18.0 points above BN at "
        "batch 1 (n = 1 each), and nothing says how far another seed would move it.",
        "Train seeds=5 of each, which adds the missing ones.",
        TRAINED,
        TOGETHER,
    )


def test_missing_cells():
    assert_answer(
        [series("bn", flat(60, 2, 64)), gn(flat(78, 1, 2, 64))],
        "At every batch size (2 and 64), use GN with 8 groups: it leads BN by # points at "
        f"batch 2 {BETWEEN}.",
        "BN is missing at batch 1.",
        beside=(2,),
    )


def test_everything_diverged():
    lost = flat([None] * 3, 1, 2)
    assert_answer(
        [make_series("bn", lost), make_series("gn", lost, groups=8), make_series("ln", lost)],
        "Every seed of every norm diverged at batch 1 and 2, so there is no accuracy to compare; a "
        "smaller lr is the first thing to try.",
    )


def test_two_settings_of_one_study_are_answered_one_by_one_the_largest_first():
    start = {"init_from": "bn-b64-resnet8-922f848f (113e95)"}
    scratch = {"init_from": None}
    lines = [series("bn", flat(60, 1, 8), **scratch), gn(flat(78, 1, 8), **scratch)]
    lines += [series("bn", flat(70, 1, 8, 64), **start), gn(flat(62, 1, 8, 64), **start)]
    assert_answer(
        lines,
        "Trained from bn-b64-resnet8-922f848f: at every batch size (1, 8 and 64), use BN: "
        f"it leads GN with 8 groups by # points at batch 1 {BETWEEN}.",
        "Trained from scratch: at every batch size (1 and 8), use GN with 8 groups: it "
        f"leads BN by # points at batch 1 {BETWEEN}.",
        TRAINED,
        TOGETHER,
        f"Intervals are simultaneous within each setting {SOURCES}",
    )


def test_a_fixed_update_batch_beside_one_that_follows_the_batch():
    fixed = {"update": "64", "update_batch": 64}
    lines = [series("bn", {1: 60, 8: 80}, 1.5), gn({1: 78, 8: 78}, 1.5)]
    lines += [series("bn", {1: 60, 8: 78.2, 64: 84}, **fixed), gn(flat(78, 1, 8, 64), **fixed)]
    assert_answer(
        lines,
        "With update_batch=64: at batch 1, use GN with 8 groups: it leads BN by # points "
        f"{BETWEEN}.",
        "With update_batch=64: at batch 8 the data do not decide: highest mean BN, # "
        f"points above GN with 8 groups {BETWEEN}; 10,000 test images are too few to decide it.",
        f"With update_batch=64: at batch 64, use BN: it leads GN with 8 groups by # points "
        f"{BETWEEN}.",
        "With update_batch=64: every update used 64 images, so effects of batch size are the "
        "norm's alone.",
        "With update_batch=batch: at batch 1, use GN with 8 groups: it leads BN by # "
        f"points {BETWEEN}.",
        "With update_batch=batch: at batch 8 the data do not decide: highest "
        f"mean BN, # points above GN with 8 groups {BETWEEN}; @ seeds each would decide it.",
        f"With update_batch=batch: e{TOGETHER[1:]}",
        TRAINED,
        f"Intervals are simultaneous within each setting {SOURCES}",
    )


def test_no_bn():
    assert_answer(
        [gn(flat(78, 1, 8)), series("ln", flat(70, 1, 8)), series("in", flat(60, 1, 8))],
        "At every batch size (1 and 8), use GN with 8 groups: it leads every other norm, "
        f"LN by # points at batch 1 {BETWEEN}.",
        "BN was not trained.",
        beside=(0, 6),
    )


def test_a_study_of_one_norm():
    told = answer(analysis_of([gn({1: 30, 32: 78})]))
    assert (
        told[0] == "Only GN with 8 groups was trained; train norm=bn at batch 1 and 32 to compare."
    )
    assert re.fullmatch(
        r"From batch 32 to 1 it loses accuracy: -48\.0 points \(95 % interval -\d+\.\d to "
        r"-\d+\.\d, n = 5 each\), the only comparison\.",
        told[1],
    )
    assert told[2:] == [TRAINED, TOGETHER]


def test_a_half_finished_study():
    ln = make_series("ln", values({1: 70}), test=10_000)
    one = make_series("in", {1: [65.0], 8: [65.0]})
    assert_answer(
        [series("bn", flat(60, 1, 8)), gn(flat(78, 1, 8)), ln, one],
        "At every batch size (1 and 8), use GN with 8 groups: it leads every other norm "
        f"compared, BN by # points at batch 1 {BETWEEN}.",
        "LN was trained only at batch 1; IN was trained with one seed and is not compared.",
        beside=(3, 1),
    )


@pytest.mark.parametrize(
    ("seen", "tuned", "expected"),
    [
        (
            15_000,
            None,
            "Training was short: 3 passes over 5,000 images, at one learning rate for all (0.1, "
            "not tuned); final training accuracy 90 %. The answer holds for this budget.",
        ),
        (
            200_000,
            True,
            "Trained for 40 passes over 5,000 images, at learning rates tuned for each norm and "
            "batch size; final training accuracy 90 %.",
        ),
    ],
)
def test_the_training_stands_beside_the_answer(seen, tuned, expected):
    options = {"seen": seen, **({} if tuned is None else {"tuned": tuned, "lr": "tuned"})}
    lines = [series("bn", flat(60, 1, 8), **options), gn(flat(78, 1, 8), **options)]
    told = answer(analysis_of(lines))
    assert expected in " ".join(told)


def test_the_range_of_training_accuracies_is_said():
    lines = [series("bn", {1: 60}, train_acc=20.0), gn({1: 78}, train_acc=95.0)]
    assert "final training accuracy 20 to 95 %" in " ".join(answer(analysis_of(lines)))
