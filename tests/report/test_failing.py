"""With many norms, the report says of each small batch size which of them fail there."""

import re

import pytest
from evidence_series import analysis_of, draw, make_series

from gnexp.report.text.summary import failing_sentences

NORMS = ("bn", "gn", "ln", "in", "rms", "frn", "gbn", "dyt")


def study(**changed):
    """Eight norms at 60 % everywhere, but for what is changed: {norm: {batch: percent}}."""
    found = []
    for seed, norm in enumerate(NORMS):
        means = {1: 60, 8: 60, 32: 60, **changed.get(norm, {})}
        drawn = draw({batch: mean or 60 for batch, mean in means.items()}, seed=seed)
        lost = {batch: [None, *drawn[batch][1:]] for batch, mean in means.items() if mean is None}
        found.append(make_series(norm, {**drawn, **lost}, test=10_000))
    return found


def test_every_norm_that_falls_is_named_with_its_fall_and_the_worst_comes_first():
    _, at_1, at_8 = failing_sentences(analysis_of(study(bn={1: 40, 8: 60}, gbn={1: 20})))
    assert at_1.startswith("At batch 1, 2 of 8 are below their own accuracy at batch 32")
    falls = re.findall(r"(Ghost BN|BN) (-\d+\.\d) \[(-\d+\.\d), (-\d+\.\d)\]", at_1)
    assert [name for name, *_ in falls] == ["Ghost BN", "BN"]
    for (_, *numbers), expected in zip(falls, (-40, -20)):
        fall, lo, hi = map(float, numbers)
        assert fall == pytest.approx(expected, abs=1.5)
        assert lo < fall < hi < 0
    assert "none of 8 is decidedly below" in at_8


def test_a_norm_at_chance_or_with_diverged_seeds_is_named():
    sentences = failing_sentences(analysis_of(study(dyt={1: 10, 32: 10}, bn={8: None})))
    assert sentences[0].endswith("7 of 8; not DyT (5 of 5 at chance).")
    assert "not above chance: DyT (5 of 5 at chance)" in sentences[1]
    assert sentences[2].endswith("not above chance: BN (1 of 5 diverged).")


def test_where_every_norm_trains_at_the_reference_batch_it_says_all():
    assert failing_sentences(analysis_of(study()))[0].endswith(
        "over the test images: all 8 series."
    )
