"""The user's own code: how a norm or a model at an import path is imported, digested and built."""

import ast
import functools
import hashlib
import importlib.machinery
import os
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy

from gnexp.norms import plugins
from gnexp.norms.registry import NORMS, build_norm, require_channels


def import_target(path: str | Callable[..., Any], key: str = "norm._target_") -> Callable[..., Any]:
    """Return the class or function at an import path; the current directory is importable.

    key: under which it was typed. What is called stands for itself. Raises ValueError naming the
    path and what is missing.
    """
    if callable(path):
        return path
    module_name, _, attribute = str(path).rpartition(".")
    if not module_name:
        example = "my_pkg.MyNorm" if key.startswith("norm") else "my_pkg.Net"
        raise ValueError(f"{key}={path} must be MODULE.NAME, such as {example}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    _refuse_namesake(module_name, path, key)
    try:
        module = _as_it_is_now(importlib.import_module(module_name), attribute)
    except ImportError as error:
        raise ValueError(f"{norm_text(path, key)} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the user's module does when imported
        name = type(error).__name__
        raise ValueError(f"{norm_text(path, key)}: importing it raised {name}: {error}") from error
    if not hasattr(module, attribute):
        raise ValueError(f"{norm_text(path, key)}: {module_name} has no {attribute}")
    if not callable(found := getattr(module, attribute)):
        raise ValueError(f"{norm_text(path, key)} is not a class or function")
    return found


_IMPORTED_AT = time.time()
_imported: dict[str, str] = {}  # digests of the files of the user's modules, when imported


def _refuse_namesake(module_name: str, path: str, key: str) -> None:
    """Refuse a module of this folder when another of its name, from elsewhere, is imported."""
    top = module_name.split(".")[0]
    known = getattr(sys.modules.get(top), "__file__", None)
    found = known and importlib.machinery.PathFinder.find_spec(top, [str(Path.cwd())])
    if found and found.origin and Path(found.origin).resolve() != Path(known).resolve():
        raise ValueError(
            f"{norm_text(path, key)}: {Path(found.origin).name} of this folder is not the {top}"
            f" that was imported before, from {Path(known).parent}; rename one of them"
        )


def _as_it_is_now(module: ModuleType, attribute: str) -> ModuleType:
    """Return a module with the code that its files hold, which a notebook's user may have edited.

    Its files are also those of the module that defines the attribute, and of the user's modules
    that these import. The run's identity is made from the files, so that code of before must not
    train under it.
    """
    home = sys.modules.get(getattr(getattr(module, attribute, None), "__module__", None) or "")
    files = [*source_files(module), *(source_files(home) if home else [])]
    by_file = {getattr(each, "__file__", None): each for each in [*sys.modules.values()]}
    loaded = [by_file[str(file)] for file in dict.fromkeys(files) if str(file) in by_file]
    if [each for each in loaded if _is_edited(each)]:
        for each in reversed(loaded):  # what a module imports comes before it
            importlib.reload(each)
    return module


def source_files(module: ModuleType) -> list[Path]:
    """Return the file of a module and those of the modules beside it that it imports, and so on.

    Installed packages are not followed: their versions are not gnexp's to watch.
    """
    file = getattr(module, "__file__", None)
    if not file or not file.endswith(".py"):
        return []
    found = [Path(file)]
    if _is_installed(found[0]):
        return found
    package = found[0].name == "__init__.py"
    root = found[0].parents[module.__name__.count(".") + package]
    for source in found:
        for name in _imported_names(source, root):
            place = root.joinpath(*name.split("."))
            for file in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
                if file.is_file() and file not in found:
                    found.append(file)
    return found


def _imported_names(source: Path, root: Path) -> list[str]:
    """Return the dotted names that a file imports, or may: `from a import b` gives a and a.b."""
    names = []
    for node in ast.walk(ast.parse(source.read_bytes())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = source.parents[node.level - 1].relative_to(root).parts if node.level else ()
            start = ".".join([*above, *([node.module] if node.module else [])])
            names += [start, *(f"{start}.{alias.name}".strip(".") for alias in node.names)]
    return [name for name in names if name]


def _is_installed(file: Path) -> bool:
    kinds = ("purelib", "platlib", "stdlib")
    return not {sysconfig.get_path(kind) for kind in kinds}.isdisjoint(map(str, file.parents))


def _is_edited(module: ModuleType) -> bool:
    """Return whether a module's file is another than when it was imported, or last asked for."""
    path = Path(module.__file__)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if module.__name__ not in _imported:  # a notebook may have imported it, then edited it
        late = path.stat().st_mtime > _process_began() and not _is_installed(path)
        _imported[module.__name__] = "" if late else digest
    edited = _imported[module.__name__] != digest
    _imported[module.__name__] = digest
    return edited


@functools.cache
def _process_began() -> float:
    """Return when this process began, in seconds since the epoch; else when gnexp was imported."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return _IMPORTED_AT
    return time.time() - uptime + ticks / os.sysconf("SC_CLK_TCK")


def norm_text(path: str, key: str = "norm._target_") -> str:
    """Return what is at an import path as it is typed, which may be the name of a plug-in."""
    return plugins.label(path, NORMS) if key == "norm._target_" else f"{key}={path}"


def build_named(name: str, num_channels: int, **options: Any) -> nn.Module:
    """Return the layer `name`, of the table or of a plug-in; see `gnexp.build_norm`."""
    if isinstance(name, str) and name in NORMS:
        return build_norm(name, num_channels, **options)
    require_channels(num_channels)
    if plugin := plugins.usable(NORMS).get(str(name)):
        return own_factory(plugin.target, options)(num_channels)
    raise ValueError(plugins.unknown_norm(str(name), list(NORMS)))


def own_factory(path: str, options: dict[str, Any]) -> Callable[[int], nn.Module]:
    """Return the callable that builds the norm at an import path with these options.

    It raises ValueError, with the reason, for what cannot be built or is no nn.Module.
    """
    target = import_target(path)

    def build(channels: int) -> nn.Module:
        try:
            layer = target(channels, **options)
        except (Exception, SystemExit) as error:  # whatever the user's code does
            typed = "".join(f", {k}={v}" for k, v in options.items())
            raise ValueError(
                f"{norm_text(path)} raised {type(error).__name__} when called with"
                f" ({channels}{typed}): {error}"
            ) from error
        if not isinstance(layer, nn.Module):
            kind = type(layer).__name__
            raise ValueError(f"{norm_text(path)} must return an nn.Module, not {kind}")
        if lazy := [name for name, tensor in layer.named_parameters() if is_lazy(tensor)]:
            raise ValueError(
                f"{norm_text(path)} returns a lazy layer ({lazy[0]}): build it with channels"
            )
        return layer

    return build
