"""A run's name stands for everything that can change its numbers, and for nothing else."""

import dataclasses

import pytest

from gnexp.config.identity import as_dict, restore, run_name
from gnexp.config.resolve import expand, resolve
from gnexp.config.schema import DataConfig, ModelConfig, TrainConfig

GN = {"name": "gn", "eps": 1e-5}
BN = {"name": "bn", "eps": 1e-5, "momentum": 0.1}
TINY = ModelConfig("tiny", 32)


def name(checksum="images", code=None, **keys):
    config = TrainConfig(**{"norm": dict(GN), "model": TINY, **keys})
    return run_name(resolve(config), checksum, code)


# Pinned: if one of these changes, runs that people have stored are no longer found.
GOLDEN: dict[str, dict] = {
    "gn-g8-b32-tiny-6463add7": {},
    "bn-b32-tiny-982a4d35": {"norm": dict(BN)},
    "gn-g32-b2-tiny-cabda95f": {"groups": 32, "batch": 2},
    "gn-m4-b1-tiny-d61bcd11": {"channels_per_group": 4, "batch": 1},
    "ln-b8-u64-tiny-abe95117": {
        "norm": {"name": "ln", "eps": 1e-5},
        "batch": 8,
        "update_batch": 64,
    },
    "in-b32-resnet20-897949e3": {
        "norm": {"name": "in", "eps": 1e-5},
        "model": ModelConfig("resnet20", 16),
    },
    "none-b32-tiny-376c5de2": {"norm": {"name": "none"}, "zero_gamma": True},
    "bn-b32-tiny-0ec55d9d": {"norm": dict(BN), "lr": 0.2, "lr_rule": "sqrt", "epochs": 30},
    "MyNorm-b32-tiny-3a4a44f2": {
        "norm": {"name": "custom", "_target_": "pkg.MyNorm", "power": 3},
        "code": "abc",
    },
    "gn-g8-b32-tiny-24fa9650": {
        "data": DataConfig(augment="crop", mean=[0.4, 0.5, 0.6]),
        "precision": "bf16",
    },
}


def test_ten_names_are_what_they_were_when_they_were_first_given():
    assert {golden: name(**keys) for golden, keys in GOLDEN.items()} == {g: g for g in GOLDEN}
    assert len(GOLDEN) == 10


@pytest.mark.parametrize(
    "keys",
    [
        {"device": "cuda"},
        {"execution": "eager"},
        {"seeds": 5},
        {"seeds": [7]},
        {"study": "other"},
        {"out": "elsewhere"},
        {"workers": 3},
        {"groups": 8},
        {"update_batch": 32},
        {"reference_batch": 16},
        {"gradients_at": [1, 2]},
        {"covariance": True},
        {"data": DataConfig(root="elsewhere", title="mine", preview=True)},
    ],
)
def test_what_cannot_change_the_numbers_does_not_change_the_name(keys):
    assert name(**keys) == name()


@pytest.mark.parametrize(
    "keys",
    [
        {"norm": dict(BN)},
        {"norm": {"name": "gn", "eps": 1e-3}},
        {"model": ModelConfig("tiny", 16)},
        {"groups": 4},
        {"channels_per_group": 4},
        {"groups_fallback": "gcd"},
        {"batch": 16},
        {"update_batch": 64},
        {"epochs": 5},
        {"lr": 0.2},
        {"lr_rule": "sqrt"},
        {"momentum": 0.8},
        {"weight_decay": 1e-4},
        {"warmup": 0.1},
        {"schedule": "constant"},
        {"zero_gamma": True},
        {"precision": "bf16"},
        {"gradients": 64},
        {"gradients_augment": True},
        {"data": DataConfig(augment="crop")},
        {"data": DataConfig(mean=[0.5, 0.5, 0.5])},
        {"checksum": "other images"},
        {"code": "of my norm"},
    ],
)
def test_what_can_change_the_numbers_changes_the_name(keys):
    assert name(**keys) != name()


@pytest.mark.parametrize("keys", [{"groups": 4}, {"channels_per_group": 2}])
def test_groups_are_nothing_to_a_norm_that_has_none(keys):
    assert name(norm=dict(BN), **keys) == name(norm=dict(BN))


def test_the_readable_part_says_norm_groups_batches_and_model():
    assert name(groups=4, batch=2, update_batch=64).startswith("gn-g4-b2-u64-tiny-")
    assert name(channels_per_group=4).startswith("gn-m4-b32-tiny-")
    own = {"name": "custom", "_target_": "pkg.mod.MyNorm"}
    assert name(norm=own).startswith("MyNorm-b32-tiny-")


def test_a_config_comes_back_from_the_folder_as_it_went_in():
    config = resolve(TrainConfig(norm=dict(GN), model=TINY, batch=2, seeds=3))
    assert restore(as_dict(config)) == config
    later = {**as_dict(config), "a_key_of_a_later_version": 1}
    assert restore(later) == config


def test_a_list_of_rates_is_one_run_per_rate_and_together_sets_several_keys():
    config = TrainConfig(norm=dict(GN), lr=[0.1, 0.2], together={"batch": 4, "groups": 2})
    first, second = expand(config)
    assert (first.lr, second.lr) == (0.1, 0.2)
    assert (first.batch, first.groups, first.together) == (4, 2, None)
    assert dataclasses.replace(second, lr=0.1) == first


# Names of before a change that gave these runs other numbers.
OUTDATED: dict[str, dict] = {
    "none-b32-tiny-c98f0108": {"norm": {"name": "none"}, "precision": "bf16"},
    "none_fixup-b32-tiny-7bb19889": {"norm": {"name": "none_fixup"}, "precision": "bf16"},
    "none_fixup-b32-tiny-987848e4": {"norm": {"name": "none_fixup"}},
    "none-b32-tiny-a9888864": {"norm": {"name": "none"}, "initialization": "fixup"},
}


def test_a_run_whose_numbers_have_changed_has_another_name_than_before():
    assert [old for old, keys in OUTDATED.items() if name(**keys) == old] == []
    assert [old[:-8] for old in OUTDATED] == [name(**keys)[:-8] for keys in OUTDATED.values()]


def test_the_momentum_rule_is_part_of_a_name_only_where_it_is_not_what_it_was():
    plain = name(norm=dict(BN))
    assert name(norm={**BN, "momentum_rule": "batches"}) == plain
    assert name(norm={**BN, "momentum_rule": "examples"}) != plain
