"""Turn Hydra's errors into one sentence with the key, the value and the nearest valid choice."""

import re
from collections.abc import Sequence

from omegaconf import OmegaConf

from gnexp.config.files import config_folder, keys_of, norm_names, norm_options
from gnexp.config.schema import COMMANDS, CUSTOM, KEYS, TAKES_GROUPS
from gnexp.config.unknown import unknown
from gnexp.norms import plugins

# Words of OmegaConf's reasons, and what a value should have been.
WANTED = {
    "Integer": "a whole number, such as 2",
    "Float": "a number, such as 0.1",
    "valid bool": "true or false",
    "not Optional": "a value, not null",
    "to string": "one word, not a list",
}


def sentence_of(error: Exception, command: str, arguments: Sequence[str] = ()) -> str:
    """Return Hydra's error in one sentence; arguments: that it is about, as a norm's choice."""
    text, cause = str(error), str(error.__cause__ or "")
    if found := re.search(r"Could not override '([^']+)'", text):
        return unknown_key(found[1].lstrip("+"), command, arguments)
    if found := re.search(r"Could not find '(\w+)/([^']*)'", text):
        return unknown_choice(found[1], found[2])
    if found := re.search(r"Error merging override (\S+)", text):
        wanted = (sentence for kind, sentence in WANTED.items() if kind in cause)
        return f"{found[1].lstrip('+')} must be {next(wanted, cause.splitlines()[0])}"
    if found := re.search(r"Missing mandatory value: (\S+)", text + cause):
        if found[1] == "_target_":  # OmegaConf leaves out what it is in, which is norm=custom
            return "norm._target_ must be given, as norm._target_=my_pkg.MyNorm"
        return f"{found[1]} must be given, as {found[1]}=VALUE"
    first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
    if "OverrideParse" in type(error).__name__:
        return f"cannot read what was typed ({first}); write key=value, quoted where a shell needs"
    return first


def ambiguous(command: str, override: str) -> str:
    """Return the sentence for a sweep without --multirun."""
    key, _, value = override.partition("=")
    if command == "report" and key == "study":
        return f"{override} would be a sweep: to compare two studies type {key}=[{value}]"
    takes_a_list = key in KEYS and KEYS[key].grid == "list"
    as_list = f", or {key}=[{value}] for a list" if takes_a_list else ""
    return f"{override} is a sweep: type -m {override}{as_list}"


def unknown_choice(group: str, choice: str) -> str:
    """Return the sentence for a choice that a group does not have."""
    if group == "norm":
        return plugins.unknown_norm(choice, norm_names())
    valid = sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))
    return unknown(f"{group}={choice} is unknown", choice, [v for v in valid if v != CUSTOM])


def unknown_key(key: str, command: str, arguments: Sequence[str] = ()) -> str:
    """Return the sentence for a key that the command does not have, or that a norm does not."""
    if key.startswith("norm.") and "norm" in keys_of(COMMANDS[command]):
        return _unknown_option(key, command, arguments)
    sentence = f"{key} is not a key of gnexp {command}"
    return unknown(sentence, key, keys_of(COMMANDS[command]), listed=())


def _unknown_option(key: str, command: str, arguments: Sequence[str]) -> str:
    defaults = OmegaConf.load(config_folder() / f"{command}.yaml").defaults
    usual = next(each.norm for each in defaults if "norm" in each)
    name = next((a.partition("=")[2] for a in arguments if a.startswith("norm=")), usual)
    valid = norm_options(name)
    sentence = f"{key} is not an option of norm={name}"
    own = "a norm of your own takes any, with norm._target_=my_pkg.MyNorm"
    if not valid:
        return f"{sentence}, which has none; {own}"
    if name in TAKES_GROUPS and "group" in key:
        valid = [*valid, "groups", "channels_per_group"]
    bare = {word.removeprefix("norm."): word for word in valid}
    return f"{unknown(sentence, key.removeprefix('norm.'), (), valid, also=bare)}; {own}"
