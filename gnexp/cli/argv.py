"""The words after `gnexp COMMAND`, put in order for Hydra; those it would misread are refused."""

import argparse
import re

from gnexp.cli.hydra_errors import unknown_choice, unknown_key
from gnexp.config.files import keys_of, norm_names
from gnexp.config.schema import COMMANDS, CUSTOM, UsageError
from gnexp.norms import plugins

GROUPS = ("norm", "model", "data", "privacy", "experiment")
# Of which Hydra makes a number, a truth value or nothing, where the name of a choice is meant.
NO_NAME = re.compile(r"[-+]?(\d[\d_.]*(e[-+]?\d+)?|inf|nan)|true|false|null", re.IGNORECASE)
NUMBER = re.compile(r"[-+]?[\d_.]*\d[\d_.]*(e[-+]?\d+)?", re.IGNORECASE)
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir")  # that Hydra would write to; a study has its own
# Choices that need an import path or a name beside them, which norm=glob(*) cannot give.
NOT_IN_GLOBS = {"norm": "custom", "model": "[custom,torchvision,timm]"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UsageError(message)


def flags_of(arguments: list[str]) -> argparse.Namespace | None:
    """Return Hydra's flags about composing, and the overrides; None for a question to Hydra."""
    parser = _Parser(add_help=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-r", "--run", action="store_true")
    for flag in ("-cd=--config-dir", "-cn=--config-name", "-cp=--config-path", "-c=--cfg"):
        parser.add_argument(*flag.split("="))
    parser.add_argument("--experimental-rerun")
    flags, others = parser.parse_known_args(arguments)
    if flags.experimental_rerun:
        raise UsageError(
            "--experimental-rerun is not supported: the same command again goes on where it ended"
        )
    return None if others or flags.cfg else flags


def arranged(command: str, arguments: list[str]) -> list[str]:
    """Return the arguments as Hydra takes them; raises UsageError for those it would misread."""
    for argument in arguments:
        if any("\ud800" <= sign <= "\udfff" for sign in argument):
            # As from a file name that is not UTF-8: no config could be written, or be read again.
            raise UsageError(f"{argument!a} holds bytes that are not UTF-8: rename what it names")
    arguments = [_readable(argument) for argument in arguments]
    if command in ("train", "check"):
        arguments = _with_custom_choices(arguments)
    _refuse_odd_overrides(command, arguments)
    # argparse wants flags and key=value not mixed; people type -m anywhere.
    return sorted(arguments, key=lambda a: "=" in a and not a.startswith("-"))


def quoted(text: str) -> str:
    """Return a text as Hydra's grammar reads it, whatever signs it holds."""
    text = re.sub(r"(\\+)(?='|$)", r"\1\1", text).replace("'", "\\'").replace("${", "\\${")
    return f"'{text}'"


def _readable(argument: str) -> str:
    """Quote what Hydra's grammar needs quoted; let a glob leave out what needs more than a name."""
    key, _, value = argument.partition("=")
    if argument.startswith("-") or not value:
        return argument
    if key in NOT_IN_GLOBS and (found := re.fullmatch(r"glob\(([^,=\[\]()]+)\)", value)):
        return f"{key}=glob({found[1]},exclude={NOT_IN_GLOBS[key]})"
    if re.search(r"['\"\[\](){}]", value):
        return argument
    parts = value.split(",")
    return f"{key}={','.join(p if p.isascii() and '~' not in p else quoted(p) for p in parts)}"


def _with_custom_choices(arguments: list[str]) -> list[str]:
    """Choose a group's custom entry when its _target_ is typed, and let its own keys be typed."""
    typed = dict(a.lstrip("+").split("=", 1) for a in arguments if "=" in a)
    own = [group for group in ("norm", "model") if f"{group}._target_" in typed]
    for group in own:
        if typed.get(group, CUSTOM) != CUSTOM:
            raise UsageError(
                f"{group}={typed[group]} and {group}._target_= exclude each other: type one of them"
            )
    named = {*re.findall(r"[\w-]+", typed.get("norm", ""))}
    of_plugin = named and named & plugins.usable(norm_names()).keys()
    opened = ("model.options.", "norm.") if "norm" in own or of_plugin else ("model.options.",)
    arguments = [f"++{a}" if a.startswith(opened) else a for a in arguments]
    chosen = [f"{group}={CUSTOM}" for group in own]
    return [*chosen, *(a for a in arguments if a not in chosen)]


def _refuse_odd_overrides(command: str, arguments: list[str]) -> None:
    """Refuse what Hydra would take in silence and not as it was meant.

    That is a key typed twice (the last counts), a list for a group (it merges the choices), a new
    key (nobody reads it), a key taken away, a folder of Hydra's, and a number for a truth value.
    """
    truths, known = keys_of(COMMANDS[command], bool), {*keys_of(COMMANDS[command]), *GROUPS}
    seen: dict[str, str] = {}
    for argument in arguments:
        if argument.startswith("~"):
            raise UsageError(f"{argument}: no key can be taken away; give it another value")
        if argument.startswith("-") or "=" not in argument:
            continue
        key, _, text = argument.lstrip("+").partition("=")
        if not key:
            raise UsageError(f"{argument} names no key; write key=value, such as batch=2")
        if key in FOLDERS:
            raise UsageError(
                f"{argument} is not used: a study has its own folder; type out=FOLDER, and"
                " study=NAME for a folder in it"
            )
        is_open = re.match(r"(norm|hydra)([./]|$)|model\.options\.", key)
        if argument.startswith("+") and not is_open and key not in known:
            raise UsageError(unknown_key(key, command))
        if key in seen:
            raise UsageError(f"{key} is typed twice, {seen[key]} and {argument}: keep one of them")
        seen[key] = argument
        for value in map(str.strip, text.split(",")):
            if key in truths and NUMBER.fullmatch(value) and value not in "01":
                raise UsageError(f"{key}={value} must be true or false")
            if key in GROUPS and NO_NAME.fullmatch(value):
                raise UsageError(unknown_choice(key, value))
        if key in GROUPS and text.lstrip("'\"").startswith("["):
            names = text.strip("'\"[]")
            raise UsageError(
                f"{key}={text}: {key} takes one choice; for a grid type -m {key}={names}"
            )
