"""Accuracy per class, calibration, and the gap between classes that chance alone would show."""

import math
import random

import pytest
import torch

from gnexp.measure.class_accuracy import calibration_error, chance_gap, class_accuracies

FLOAT64 = 1e-12


def draws(seed):
    return torch.Generator().manual_seed(seed)


def logits_and_labels(n=500, classes=6, seed=0):
    logits = 2 * torch.randn(n, classes, generator=draws(seed), dtype=torch.float64)
    return logits, torch.randint(0, classes, (n,), generator=draws(seed + 1))


def calibration_error_image_by_image(logits, labels, bins):
    """The oracle: plain Python, from the definition."""
    inside = [[] for _ in range(bins)]
    for row, label in zip(logits.tolist(), labels.tolist()):
        total = sum(math.exp(z) for z in row)
        probabilities = [math.exp(z) / total for z in row]
        confidence = max(probabilities)
        hit = probabilities.index(confidence) == label
        for b in range(bins):
            if b / bins < confidence <= (b + 1) / bins:
                inside[b].append((confidence, hit))
    gaps = 0.0
    for members in inside:
        if members:
            confidence = sum(c for c, _ in members) / len(members)
            accuracy = sum(h for _, h in members) / len(members)
            gaps += abs(confidence - accuracy) * len(members) / len(labels)
    return gaps


@pytest.mark.parametrize("bins", [1, 7, 15, 200])
@pytest.mark.parametrize("classes", [2, 60])
def test_the_calibration_error_is_that_of_its_definition(bins, classes):
    logits, labels = logits_and_labels(classes=classes)
    slow = calibration_error_image_by_image(logits, labels, bins)
    assert calibration_error(logits, labels, bins) == pytest.approx(slow, abs=FLOAT64)


def test_a_bin_ends_with_its_upper_edge():
    confident = torch.tensor([[0.0, 0.0], [math.log(9), 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 1])  # at 1/2 right, at 9/10 wrong: in one bin they would cancel
    assert calibration_error(confident, labels, 2) == pytest.approx((0.5 + 0.9) / 2, abs=FLOAT64)
    assert calibration_error(confident, labels, 1) == pytest.approx((0.9 - 0.5) / 2, abs=FLOAT64)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_diverged_model_has_no_calibration_and_no_class_accuracies(bad):
    logits, labels = logits_and_labels(20, 2)
    logits[3, 1] = bad
    assert math.isnan(calibration_error(logits, labels))
    rows = class_accuracies(logits, labels, ["a", "b"])
    assert [row["n"] for row in rows] == labels.bincount().tolist()
    assert all(math.isnan(row["accuracy"]) for row in rows)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_class_accuracies_are_hits_over_images_of_each_class(dtype):
    logits, labels = logits_and_labels(300, 4)
    logits = logits.to(dtype)
    rows = class_accuracies(logits, labels, "abcd")
    for k, row in enumerate(rows):
        own = [i for i in range(300) if labels[i] == k]
        hits = [i for i in own if max(range(4), key=lambda c: logits[i, c]) == k]
        assert row == {"class": "abcd"[k], "n": len(own), "accuracy": len(hits) / len(own)}


def test_the_chance_gap_is_that_of_dealing_the_images_anew():
    """Three images in classes of 2 and 1 can be dealt in three ways, so the null is known."""
    hits = torch.tensor([[1, 1, 0], [1, 0, 0]])  # mean over seeds: 1, 1/2, 0
    found = chance_gap(hits, torch.tensor([0, 0, 1]), permutations=20_000)
    gaps = [abs((1 + 1 / 2) / 2 - 0), abs((1 + 0) / 2 - 1 / 2), abs((1 / 2 + 0) / 2 - 1)]
    assert found["chance_gap"] == pytest.approx(sum(gaps) / 3, abs=0.01)
    assert found["chance_gap_95"] == pytest.approx(0.75, abs=FLOAT64)
    assert found["gap_p"] == pytest.approx(2 / 3, abs=0.02)  # 3/4 is reached by 3/4 and 3/4


def where_classes_do_not_matter(seed, seeds=3, sizes=(40, 60, 80, 20, 100)):
    """Hits of images that are easy or hard, alike for all seeds, whatever their class."""
    random.seed(seed)
    hard = [random.betavariate(2, 1) for _ in range(sum(sizes))]
    hits = torch.tensor([[random.random() < p for p in hard] for _ in range(seeds)])
    return hits, torch.tensor([k for k, size in enumerate(sizes) for _ in range(size)])


def test_where_classes_do_not_matter_every_p_value_is_as_likely_as_any_other():
    found = [chance_gap(*where_classes_do_not_matter(seed), permutations=99) for seed in range(300)]
    p_values = [result["gap_p"] for result in found]
    for level in (0.05, 0.25, 0.5, 0.75):
        share = sum(p <= level for p in p_values) / len(p_values)
        assert abs(share - level) < 3.5 * math.sqrt(level * (1 - level) / 300)


def test_the_same_seed_gives_the_same_numbers_and_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    data = where_classes_do_not_matter(5)
    assert chance_gap(*data, seed=4) == chance_gap(*data, seed=4) != chance_gap(*data, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_permutations_in_blocks_are_the_permutations(monkeypatch):
    data = where_classes_do_not_matter(6)
    whole = chance_gap(*data, permutations=100)
    monkeypatch.setattr("gnexp.measure.class_accuracy._AT_ONCE", 1000)
    assert chance_gap(*data, permutations=100) == whole


def test_a_gap_needs_two_classes():
    with pytest.raises(ValueError, match="at least 2"):
        chance_gap(torch.zeros(1, 3), torch.zeros(3))
