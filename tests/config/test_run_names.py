"""A run's name stands for everything that can change its numbers, and for nothing else."""

import dataclasses

import pytest
import yaml

from gnexp.config.identity import as_dict, identity, restore, run_name
from gnexp.config.keys import with_value
from gnexp.config.resolve import expand, resolve
from gnexp.config.schema import DataConfig, ModelConfig, PrivacyConfig, TrainConfig

GN = {"name": "gn", "eps": 1e-5}
BN = {"name": "bn", "eps": 1e-5, "momentum": 0.1}
TINY = ModelConfig("tiny", 32)


def name(checksum="images", code=None, **keys):
    config = TrainConfig(**{"norm": dict(GN), "model": TINY, **keys})
    return run_name(resolve(config), checksum, code)


# Pinned: if one of these changes, runs that people have stored are no longer found.
GOLDEN: dict[str, dict] = {
    "gn-g8-b32-tiny-92705598": {},
    "bn-b32-tiny-d7f7580a": {"norm": dict(BN)},
    "gn-g32-b2-tiny-60bfd894": {"groups": 32, "batch": 2},
    "gn-m4-b1-tiny-13ec855b": {"channels_per_group": 4, "batch": 1},
    "ln-b8-u64-tiny-fe8557db": {
        "norm": {"name": "ln", "eps": 1e-5},
        "batch": 8,
        "update_batch": 64,
    },
    "in-b32-resnet20-d0713025": {
        "norm": {"name": "in", "eps": 1e-5},
        "model": ModelConfig("resnet20", 16),
    },
    "none-b32-tiny-42eabbdf": {"norm": {"name": "none"}, "zero_gamma": True},
    "bn-b32-tiny-becd4b86": {"norm": dict(BN), "lr": 0.2, "lr_rule": "sqrt", "epochs": 30},
    "MyNorm-b32-tiny-505b1621": {
        "norm": {"name": "custom", "_target_": "pkg.MyNorm", "power": 3},
        "code": "abc",
    },
    "gn-g8-b32-tiny-97f52212": {
        "data": DataConfig(augment="crop", mean=[0.4, 0.5, 0.6]),
        "precision": "bf16",
    },
}


def test_ten_names_are_what_they_were_when_they_were_first_given():
    assert {golden: name(**keys) for golden, keys in GOLDEN.items()} == {g: g for g in GOLDEN}
    assert len(GOLDEN) == 10


CHANGES_NO_NUMBER = (
    "device=cuda execution=eager seeds=5 seeds=[7] study=other out=elsewhere workers=3 groups=8"
    " update_batch=32 reference_batch=16 gradients_at=[1,2] covariance=true data.root=elsewhere"
    " data.title=mine data.preview=true"
)
CHANGES_NUMBERS = (
    "norm.eps=0.001 model.width=16 groups=4 channels_per_group=4 groups_fallback=gcd batch=16"
    " update_batch=64 epochs=5 lr=0.2 lr_rule=sqrt momentum=0.8 weight_decay=0.0001 warmup=0.1"
    " schedule=constant zero_gamma=true precision=bf16 gradients=64 gradients_augment=true"
    " data.augment=crop data.mean=[0.5,0.5,0.5]"
)


def name_with(word):
    key, _, value = word.partition("=")
    config, value = TrainConfig(norm=dict(GN), model=TINY), yaml.safe_load(value)
    if key.startswith("norm."):
        config.norm[key.removeprefix("norm.")] = value
    else:
        config = with_value(config, key, value)
    return run_name(resolve(config), "images")


def test_a_key_changes_the_name_exactly_when_it_can_change_the_numbers():
    assert {name_with(word) for word in CHANGES_NO_NUMBER.split()} == {name()}
    others = [name_with(word) for word in CHANGES_NUMBERS.split()]
    others += [name(norm=dict(BN)), name(checksum="other images"), name(code="of my norm")]
    assert len({name(), *others}) == 1 + len(others)


def test_groups_are_nothing_to_a_norm_that_has_none():
    for keys in ({"groups": 4}, {"channels_per_group": 2}):
        assert name(norm=dict(BN), **keys) == name(norm=dict(BN))


def test_the_readable_part_says_norm_groups_batches_and_model():
    assert name(groups=4, batch=2, update_batch=64).startswith("gn-g4-b2-u64-tiny-")
    assert name(channels_per_group=4).startswith("gn-m4-b32-tiny-")
    own = {"name": "custom", "_target_": "pkg.mod.MyNorm"}
    assert name(norm=own).startswith("MyNorm-b32-tiny-")
    assert len(name(norm={**own, "_target_": "pkg." + 240 * "N"})) < 100


def test_a_config_comes_back_from_the_folder_as_it_went_in():
    config = resolve(TrainConfig(norm=dict(GN), model=TINY, batch=2, seeds=3))
    assert restore(as_dict(config)) == config
    assert restore({key: as_dict(config)[key] for key in ("norm", "batch")}).epochs == 4
    with pytest.raises(ValueError, match="'unknown'"):
        restore({**as_dict(config), "unknown": 1})


def test_a_list_of_rates_is_one_run_per_rate_and_together_sets_several_keys():
    config = TrainConfig(norm=dict(GN), lr=[0.1, 0.2], together={"batch": 4, "groups": 2})
    first, second = expand(config)
    assert (first.lr, second.lr) == (0.1, 0.2)
    assert (first.batch, first.groups, first.together) == (4, 2, None)
    assert dataclasses.replace(second, lr=0.1) == first


def identity_of(checksum="images", **keys):
    config = TrainConfig(**{"norm": dict(GN), "model": TINY, **keys})
    return identity(resolve(config), checksum, None)


def test_a_key_that_holds_its_default_is_not_hashed_so_that_a_new_key_renames_nothing():
    assert identity_of() == {"data.checksum": "images", "norm.name": "gn"}
    assert identity_of(batch=2, update_batch=64, data=DataConfig(augment="crop")) == {
        **{"data.checksum": "images", "norm.name": "gn"},
        **{"batch": 2, "update_batch": 64, "data.augment": "crop"},
    }


def test_a_default_that_follows_from_other_keys_is_none_that_is_hashed():
    private = {"name": "dpsgd", "epsilon": 8.0, "delta": 1e-5, "clip": 1.0, "noise": "seeded"}
    found = identity_of(privacy=PrivacyConfig(**private), batch=4, devices=2)
    assert found.keys() == {
        *("data.checksum", "norm.name", "batch", "devices"),
        *(f"privacy.{key}" for key in private),
    }
    typed = DataConfig(mean=[0.4, 0.5, 0.6])
    assert "data.mean" in identity_of(privacy=PrivacyConfig(**private), data=typed)


@pytest.mark.parametrize("keys", GOLDEN.values())
def test_what_is_hashed_gives_the_config_back(keys):
    keys = {key: value for key, value in keys.items() if key != "code"}
    config = resolve(TrainConfig(**{"norm": dict(GN), "model": TINY, **keys}))
    again = TrainConfig(norm=config.norm)
    for key, value in identity(config, "images", None).items():
        if key != "data.checksum" and not key.startswith("norm."):
            again = with_value(again, key, value)
    assert resolve(again) == config


def test_values_that_mean_the_same_give_one_name():
    assert name(norm={"name": "bn"}) == name(norm=dict(BN)), "a later option renames nothing"
    assert name(norm={**BN, "momentum_rule": "batches"}) == name(norm=dict(BN))
    assert name(norm={**BN, "momentum_rule": "examples"}) != name(norm=dict(BN))
    assert name(norm={"name": "bn", "momentum": 0.2}) != name(norm=dict(BN))
    brn = {"name": "brn", "rmax": 2}
    assert name(norm=brn) == name(norm={**brn, "rmax": 2.0})
    assert name(lr=1) == name(lr=1.0)
    own = {"name": "custom", "_target_": "pkg.MyNorm"}
    assert name(norm={**own, "power": [3.0]}) == name(norm={**own, "power": [3]})
    assert name(norm={**own, "power": True}) != name(norm={**own, "power": 1})
