"""The policy of a key stands at its field, and nowhere a second time."""

import dataclasses

import pytest
import torch

from gnexp.analysis.compared_keys import _NOT_COMPARED
from gnexp.config.identity import as_dict
from gnexp.config.keys import Key, group, key, keys, value_of, with_value
from gnexp.config.rules import broken_rules
from gnexp.config.schema import COMMANDS, KEYS, TrainConfig
from gnexp.data.sources import DataSummary
from gnexp.runner.prepared_run import PreparedRun
from gnexp.runner.schedule import Replica, layout

OTHER = {int: 7, bool: True, float: 0.3, str: "other"}


def test_a_field_without_a_policy_is_refused():
    @dataclasses.dataclass
    class Forgotten:
        known: int = key(1)
        new: int = 2

    with pytest.raises(KeyError, match="policy"):
        keys(Forgotten)


def test_a_key_that_nobody_judged_is_in_the_name_and_never_stacked():
    @dataclasses.dataclass
    class Group:
        inner: int = key(1)
        own: int = key(2, stack="same", identity=True)

    @dataclasses.dataclass
    class Config:
        new: int = key(3)
        group: Group = group(Group, stack="any", identity=False)

    assert keys(Config) == {
        "new": Key(3, True, True, True, "same", "network", "axis"),
        "group.inner": Key(1, identity=False, stack="any"),
        "group.own": Key(2),
    }


def steps(device, name, value):
    """Return how many steps two trainings take that differ in one key."""
    first = dataclasses.replace(TrainConfig(norm={"name": "gn"}), update_batch=32, lr=0.1)
    second = with_value(first, name, value)
    images = DataSummary("", "", ("a", "b"), (3, 8, 8), train_size=60, test_size=40)
    runs = [
        PreparedRun(config, run, torch.device(device), images)
        for config, run in ((first, "a"), (second, "b"))
    ]
    return len(layout([Replica(run, 0) for run in runs], {}, set(), workers=1))


@pytest.mark.parametrize("name", KEYS)
def test_only_keys_that_say_so_may_differ_in_a_shared_step(name):
    value = OTHER.get(type(KEYS[name].default), "other")
    if name in ("devices", "stack", "update_batch", "lr"):
        value = 2
    free = {"same": (2, 2), "graph": (2, 1), "any": (1, 1)}[KEYS[name].stack]
    assert steps("cpu", name, value) == free[0]
    if name != "devices":  # several devices share no graph
        assert steps("cuda", name, value) == free[1]


def test_what_changes_no_number_is_all_that_is_free_beside_the_rate():
    free = {name for name, key in KEYS.items() if key.stack == "any"}
    assert {name for name in free if KEYS[name].identity} == {"lr"}


def test_a_run_holds_all_keys_but_those_of_a_call():
    stored = as_dict(TrainConfig())
    for name, each in KEYS.items():
        first, *rest = name.split(".")
        assert (first in stored) == each.stored
        if each.stored and rest:
            assert stored[first][rest[0]] == value_of(TrainConfig(), name) == each.default
    assert not any(key.identity for key in KEYS.values() if not key.stored)


def test_the_report_leaves_out_what_the_keys_say():
    """Compare the report's list, which may import no config, with the policies of the keys."""
    assert {name for name, key in KEYS.items() if key.stored and not key.compared} == _NOT_COMPARED


def fields_of(config, prefix=""):
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field


@pytest.mark.parametrize("command", COMMANDS)
def test_every_default_keeps_its_rule_and_every_number_has_one(command):
    config = COMMANDS[command]()
    assert broken_rules(config) == []
    numbers = (int, float, int | None, float | None)
    without = {n for n, f in fields_of(config) if f.type in numbers and not f.metadata["rule"]}
    # The size is looked at with the images; a bench's and a check's others by the rules of train.
    of_train = {"data.size", "groups", "channels_per_group", "workers"}
    assert without <= ({"data.size"} if command == "train" else of_train)
