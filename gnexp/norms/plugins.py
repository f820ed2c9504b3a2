"""Norms of other packages, by name: the entry points of the group `gnexp.norms`.

A package that registers `NAME = "pkg.module:Class"` there makes `norm=NAME` stand for
`norm._target_=pkg.module.Class`. Looking up what is installed imports none of it, so that a package
that is broken harms nobody who does not ask for it.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distributions

from gnexp.config.unknown import unknown

GROUP = "gnexp.norms"
# What Hydra reads as a word; "custom" is gnexp's own.
_NAME = re.compile(r"(?!(true|false|null|nan|inf|custom)$)[A-Za-z][A-Za-z0-9_-]*", re.IGNORECASE)
_TARGET = re.compile(r"\s*([\w.]+)\s*:\s*(\w+)\s*")


@dataclass(frozen=True)
class Plugin:
    """A norm that an installed package registers.

    name: as typed in `norm=NAME`. target: the import path that it stands for, "pkg.module.Class".
    package: the distribution with its version. trouble: why it cannot be used, in words that follow
    `norm=NAME`; "" if nothing is known against it before it is imported.
    """

    name: str
    target: str
    package: str
    trouble: str = ""

    @property
    def node(self) -> dict[str, str]:
        """The value of the config key `norm` that it stands for."""
        return {"name": "custom", "_target_": self.target}

    def __str__(self) -> str:
        return f"norm={self.name} ({self.target} of {self.package})"


def plugins() -> dict[str, Plugin]:
    """Return every norm that an installed package registers, by name, sorted."""
    registered: dict[str, list[EntryPoint]] = {}
    for point in _registered()[0]:
        registered.setdefault(point.name, []).append(point)
    return {name: _plugin(name, points) for name, points in sorted(registered.items())}


def unreadable() -> list[str]:
    """Return a sentence for each installed package that is passed over: its metadata is broken."""
    return _registered()[1]


def _registered() -> tuple[list[EntryPoint], list[str]]:
    """Return the entry points of the group, and a sentence for each package that cannot be read."""
    found: dict[str, list[EntryPoint]] = {}
    broken = []
    for package in distributions():
        try:
            points = [point for point in package.entry_points if point.group == GROUP]
            if points and not (package.name and package.version):
                raise ValueError("its METADATA has no name or no version")
        except Exception as error:  # Python's parser raises TypeError, UnicodeError and others
            where = getattr(package, "_path", "an unknown place")
            broken.append(
                f"the metadata of an installed package cannot be read, and norms that it may"
                f" register are passed over: {where} ({type(error).__name__}: {error})"
            )
            continue
        if points:  # of two copies of a package the first on sys.path is the one imported
            found.setdefault(package.name.lower(), points)
    return [point for points in found.values() for point in points], broken


def _plugin(name: str, points: list[EntryPoint]) -> Plugin:
    values = dict.fromkeys(point.value for point in points)  # a package may be found twice
    packages = ", ".join(dict.fromkeys(map(_package, points)))
    found = _TARGET.fullmatch(points[0].value)
    target = f"{found[1]}.{found[2]}" if found else points[0].value
    trouble = ""
    if len(values) > 1:
        claimed = " and ".join(f"{_package(p)} ({p.value})" for p in points)
        trouble = f"is registered by {claimed}: type norm._target_= with the import path you mean"
    elif not _NAME.fullmatch(name):
        trouble = (
            f"of {packages} cannot be typed: a plug-in's name is a letter, then letters, digits,"
            " '_' and '-', and none of true, false, null, nan, inf, custom"
        )
    elif not found:
        trouble = f"of {packages} is registered as {points[0].value!r}, which must be MODULE:CLASS"
    return Plugin(name, target, packages, trouble)


def _package(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def usable(table: Collection[str]) -> dict[str, Plugin]:
    """Return the plug-ins that may be asked for by name; table: gnexp's own, which go first."""
    return {
        name: found for name, found in plugins().items() if not found.trouble and name not in table
    }


def shadowed(names: Iterable[str], table: Collection[str]) -> list[str]:
    """Return a sentence for each of these names that is a norm of the table and a plug-in's too."""
    names = set(names) & set(table)
    return [
        f"norm={found.name} is gnexp's own: {found.target} of {found.package} has the same name and"
        f" is not used; type norm._target_={found.target} for it"
        for found in (plugins().values() if names else ())
        if found.name in names
    ]


def unknown_norm(name: str, table: Collection[str]) -> str:
    """Return why a norm that is not of the table cannot be had, in a sentence."""
    found = plugins()
    if name in found and found[name].trouble:
        return f"norm={name} {found[name].trouble}"
    names = [*table, *usable(table)]
    own = ", ".join(n for n in names if n not in table)
    unused = ", ".join(n for n, p in found.items() if p.trouble or n in table)
    return (
        unknown(f"norm={name} is unknown", name, names, table)
        + (f"; plug-ins: {own}" if own else "")
        + (f"; plug-ins that cannot be used: {unused}" if unused else "")
        + "".join(f"; {sentence}" for sentence in unreadable())
    )


def label(target: str, table: Collection[str]) -> str:
    """Return what a norm at an import path is called in sentences: as it may be typed."""
    named = (str(found) for found in usable(table).values() if found.target == target)
    return next(named, f"norm._target_={target}")
