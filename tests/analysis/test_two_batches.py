"""Two batch sizes apart: the statistics' share of a fall, and the optimizer's."""

import math

import numpy as np
import pytest
from evidence_series import make_series
from omegaconf import OmegaConf

from gnexp.analysis.batch_vs_update_batch import two_batches_rows
from gnexp.analysis.cells import Series
from gnexp.analysis.tables.build import table
from gnexp.report.text.summary import two_batches_sentences

SEEDS = 5
POINTS = 100


def two_rules(norm_loss, optimizer_loss, diverged=(), gain=0.0):
    """Series of BN under both rules with planted losses in points: {batch: loss}, U = 64.

    gain: points that population statistics repair of the norm's part, as a share of it.
    """
    rng = np.random.default_rng(1)
    seeds = 80 + rng.normal(0, 2, SEEDS)  # a seed's own level, which pairing takes away
    fixed, equal = {64: list(seeds)}, {64: list(seeds)}
    for batch in norm_loss:
        fixed[batch] = list(seeds - norm_loss[batch] + rng.normal(0, 0.1, SEEDS))
        equal[batch] = list(seeds - norm_loss[batch] - optimizer_loss[batch])
        for seed in diverged:
            equal[batch][seed] = None
    lines = []
    for update, accuracies in (("= batch", equal), ("64", fixed)):
        line = make_series("bn", accuracies)
        for cell in line.cells:
            cell.key["update_batch"] = 64 if update == "64" else cell.key["batch"]
            repaired = gain * norm_loss.get(cell.key["batch"], 0) / POINTS
            for row in cell.of("complete"):
                row["test_acc_population_augmented"] = row["test_acc"] + repaired
        lines.append(
            Series(f"BN, update {update}", "bn", {**line.key, "update": update}, line.cells)
        )
    return lines


def test_the_parts_of_the_fall_are_those_that_were_planted():
    lines = two_rules({1: 30, 8: 2}, {1: 5, 8: 1})
    rows = two_batches_rows(lines)
    assert [row["batch"] for row in rows] == [1, 8]
    for row, norm, optimizer in zip(rows, (0.30, 0.02), (0.05, 0.01)):
        assert row["norm_part"] == pytest.approx(norm, abs=0.002)
        assert row["optimizer_part"] == pytest.approx(optimizer, abs=0.002)
        assert row["norm_part_lo"] < norm < row["norm_part_hi"]
        assert row["fall"] == row["norm_part"] + row["optimizer_part"]
        # paired: the seeds' own levels, 2 points apart, are not in the interval
        assert row["norm_part_hi"] - row["norm_part_lo"] < 0.006
        assert (row["n"], row["n_at_chance"], row["update_batch"]) == (SEEDS, 0, 64)


def test_population_statistics_stand_beside_the_running_ones_where_they_differ():
    rows = two_batches_rows(two_rules({1: 30}, {1: 5}, gain=0.5))
    running, population = rows
    assert [row["statistics"] for row in rows] == ["running", "population_augmented"]
    assert population["norm_part"] == pytest.approx(running["norm_part"] - 0.15, abs=1e-12)
    assert population["optimizer_part"] == pytest.approx(running["optimizer_part"], abs=1e-12)
    assert (
        "with population statistics 14.98 [14.92, 15.03] and 5.02" in two_batches_sentences(rows)[0]
    )
    assert len(two_batches_rows(two_rules({1: 30}, {1: 5}))) == 1


def test_a_diverged_seed_counts_at_chance_in_the_parts_and_is_left_out_of_the_levels():
    (row,) = two_batches_rows(two_rules({1: 30}, {1: 5}, diverged=(2,)))
    (whole,) = two_batches_rows(two_rules({1: 30}, {1: 5}))
    assert (row["n"], row["n_at_chance"], row["equal_n"]) == (SEEDS, 1, SEEDS - 1)
    lost = (whole["fall"] * SEEDS - row["fall"] * SEEDS) / 1
    assert lost < -0.3  # that seed's fall is from about 80 % to 10 %, not to 45 %
    assert "1 counted at chance" in two_batches_sentences([row])[0]


def test_one_seed_has_parts_without_an_interval():
    lines = two_rules({1: 30}, {1: 5})
    for line in lines:
        for cell in line.cells:
            del cell.seeds[1:]
    (row,) = two_batches_rows(lines)
    assert row["n"] == 1
    assert math.isnan(row["norm_part_lo"])
    assert "so no interval" in two_batches_sentences([row])[0]


def test_a_study_with_one_rule_has_no_row_and_says_why():
    lines = two_rules({1: 30}, {1: 5})[:1]
    two_batches = table("two_batches", two_batches_rows(lines), ["norm", "batch"])
    assert two_batches.rows == []
    assert "experiment=two_batches" in two_batches.empty


def test_the_preset_holds_both_rules_and_the_largest_batch_once():
    preset = OmegaConf.load("configs/experiment/two_batches.yaml")
    params = preset.hydra.sweeper.params
    text = params.together
    cells = [dict(kv.split(":") for kv in part.strip("{}").split(",")) for part in split(text)]
    keys = [(int(c["batch"]), int(c.get("update_batch", c["batch"]))) for c in cells]
    sizes = (1, 2, 4, 8, 16, 32, 64)
    assert sorted(keys) == sorted({(b, b) for b in sizes} | {(b, 64) for b in sizes})
    assert len(keys) == len(set(keys)) == 13
    assert params.norm.split(",") == ["bn", "gn", "ln", "in"]
    assert (preset.study, preset.reference_batch) == ("two_batches", 64)


def split(text):
    return text.replace("},{", "}|{").split("|")
