"""Turn Hydra's errors into one sentence with the key, the value and the nearest valid choice."""

import re
from collections.abc import Sequence

from omegaconf import OmegaConf

from gnexp.config.files import config_folder, keys_of, norm_names, norm_options
from gnexp.config.schema import COMMANDS, CUSTOM, TAKES_GROUPS
from gnexp.config.unknown import unknown
from gnexp.norms import plugins


def sentence_of(error: Exception, command: str, arguments: Sequence[str] = ()) -> str:
    """Turn Hydra's error into one sentence with the nearest valid choice.

    arguments: that it is about, among which the norm may be chosen.
    """
    text = str(error)
    cause = str(error.__cause__ or "")
    if found := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(found[1].lstrip("+"), command, arguments)
    if found := re.search(r"Could not find '(\w+)/([^']*)'", text):
        group, choice = found[1], found[2]
        if group == "norm":
            return plugins.unknown_norm(choice, norm_names())
        valid = sorted(p.stem for p in (config_folder() / group).glob("*.yaml"))
        valid = [v for v in valid if v != CUSTOM]
        return unknown(f"{group}={choice} is unknown", choice, valid)
    if found := re.search(r"Error merging override (\S+)", text):
        wanted = _wanted_type(cause)
        return f"{found[1].lstrip('+')} must be {wanted}"
    if found := re.search(r"Ambiguous value for argument '([^']+)'", text):
        key, _, value = found[1].partition("=")
        if command == "report" and key == "study":
            return f"{found[1]} would be a sweep: to compare two studies type {key}=[{value}]"
        return f"{found[1]} is a sweep: type -m {found[1]}, or {key}=[{value}] for a list"
    if found := re.search(r"Missing mandatory value: (\S+)", text + cause):
        if found[1] == "_target_":  # OmegaConf leaves out what it is in, which is norm=custom
            return "norm._target_ must be given, as norm._target_=my_pkg.MyNorm"
        return f"{found[1]} must be given, as {found[1]}=VALUE"
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    if "OverrideParse" in type(error).__name__:
        return f"cannot read what was typed ({first}); write key=value, quoted where a shell needs"
    return first


def _wanted_type(cause: str) -> str:
    """Return what a value should have been, from OmegaConf's reason."""
    kinds = {
        "Integer": "a whole number, such as 2",
        "Float": "a number, such as 0.1",
        "valid bool": "true or false",
        "not Optional": "a value, not null",
        "to string": "one word, not a list",
    }
    return next((text for kind, text in kinds.items() if kind in cause), cause.split("\n")[0])


def unknown_key(key: str, command: str, arguments: Sequence[str] = ()) -> str:
    """Return the sentence for a key that the command does not have, or that a norm does not."""
    if key.startswith("norm.") and "norm" in keys_of(COMMANDS[command]):
        return _unknown_option(key, command, arguments)
    sentence = f"{key} is not a key of gnexp {command}"
    return unknown(sentence, key, keys_of(COMMANDS[command]), listed=())


def _unknown_option(key: str, command: str, arguments: Sequence[str]) -> str:
    """Return the sentence for a `norm.KEY` that the norm which is chosen, or one of them, lacks."""
    typed = [a.partition("=")[2] for a in arguments if a.startswith("norm=")]
    defaults = OmegaConf.load(config_folder() / f"{command}.yaml").defaults
    usual = [each.norm for each in defaults if "norm" in each]
    chosen = re.findall(r"[\w-]+", typed[0]) if typed else usual
    options = {name: norm_options(name) for name in chosen if name in norm_names()}
    lacking = (name for name, valid in options.items() if key not in valid)
    name = next(lacking, None)
    if name is None:
        return f"{key} is not an option of norm={','.join(chosen)}"
    own = "a norm of your own takes any, with norm._target_=my_pkg.MyNorm"
    if not options[name]:
        return f"{key} is not an option of norm={name}, which has none; {own}"
    valid = options[name]
    if name in TAKES_GROUPS and "group" in key:
        valid = [*valid, "groups", "channels_per_group"]
    bare = {word.removeprefix("norm."): word for word in valid}
    sentence = f"{key} is not an option of norm={name}"
    return f"{unknown(sentence, key.removeprefix('norm.'), (), valid, also=bare)}; {own}"
