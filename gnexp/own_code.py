"""The user's own code: how a norm or a model at an import path is imported, digested and built."""

import functools
import hashlib
import importlib.machinery
import inspect
import os
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from gnexp import plugins
from gnexp.config import CUSTOM, TrainConfig
from gnexp.norms.registry import NORMS, build_norm, require_channels


def import_target(path: str, key: str = "norm._target_") -> Callable[..., Any]:
    """Return the class or function at an import path; the current directory is importable.

    key: under which it was typed. Raises ValueError naming the path and what is missing.
    """
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
        raise ValueError(f"{said_norm(path, key)} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the user's module does when imported
        name = type(error).__name__
        raise ValueError(f"{said_norm(path, key)}: importing it raised {name}: {error}") from error
    if not hasattr(module, attribute):
        raise ValueError(f"{said_norm(path, key)}: {module_name} has no {attribute}")
    if not callable(found := getattr(module, attribute)):
        raise ValueError(f"{said_norm(path, key)} is not a class or function")
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
            f"{said_norm(path, key)}: {Path(found.origin).name} of this folder is not the {top}"
            f" that was imported before, from {Path(known).parent}; rename one of them"
        )


def _as_it_is_now(module: ModuleType, attribute: str) -> ModuleType:
    """Return a module with the code that its file holds, which a notebook's user may have edited.

    So too the module that the attribute is defined in, where that is another. The run's identity is
    made from the file, so that code of before must not train under it.
    """
    _reload_if_edited(module)
    home = sys.modules.get(getattr(getattr(module, attribute, None), "__module__", None) or "")
    if home and home is not module and _reload_if_edited(home):
        importlib.reload(module)
    return module


def _reload_if_edited(module: ModuleType) -> bool:
    """Import a module anew, in place, if its file is another than it was; return whether it was."""
    file = getattr(module, "__file__", None)
    digest = hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""
    if file and module.__name__ not in _imported:  # a notebook may have imported it, then edited it
        installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        changed = Path(file).stat().st_mtime > _process_began()
        if changed and not installed & {str(parent) for parent in Path(file).parents}:
            _imported[module.__name__] = ""
    edited = _imported.setdefault(module.__name__, digest) != digest
    if edited:
        importlib.reload(module)
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


def said_norm(path: str, key: str = "norm._target_") -> str:
    """Return what is at an import path as it is typed, which may be the name of a plug-in."""
    return plugins.said(path, NORMS) if key == "norm._target_" else f"{key}={path}"


def code_digests(config: TrainConfig) -> dict[str, str]:
    """Return {"norm": ..., "model": ...}: a digest of the source file of those that are own."""
    targets = {"model": config.model._target_}
    if config.norm.get("name") == CUSTOM:
        targets = {"norm": config.norm["_target_"], **targets}
    found = {
        part: _source_digest(target, f"{part}._target_")
        for part, target in targets.items()
        if target is not None
    }
    return {part: digest for part, digest in found.items() if digest}


def code_checksum(config: TrainConfig) -> str | None:
    """Return a digest of the source files of the user's norm and model, None without either."""
    return "-".join(code_digests(config).values()) or None


def _source_digest(path: str, key: str) -> str | None:
    target = import_target(path, key)
    try:
        source = inspect.getsourcefile(inspect.unwrap(target))
    except TypeError:  # of a functools.partial, or an object with __call__: where it is made
        source = getattr(sys.modules[path.rpartition(".")[0]], "__file__", None)
    return hashlib.sha256(Path(source).read_bytes()).hexdigest()[:16] if source else None


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
    return factory_of(import_target(path), lambda: said_norm(path), options)


def factory_of(
    target: Callable[..., Any], said: Callable[[], str], options: dict[str, Any]
) -> Callable[[int], nn.Module]:
    """Return the callable that builds target(channels, **options); see `own_factory`.

    said: gives what it is called in sentences.
    """

    def build(channels: int) -> nn.Module:
        try:
            layer = target(channels, **options)
        except (Exception, SystemExit) as error:  # whatever the user's code does
            typed = "".join(f", {k}={v}" for k, v in options.items())
            raise ValueError(
                f"{said()} raised {type(error).__name__} when called with ({channels}{typed}):"
                f" {error}"
            ) from error
        if not isinstance(layer, nn.Module):
            kind = type(layer).__name__
            raise ValueError(f"{said()} must return an nn.Module, not {kind}")
        return layer

    return build
