"""Batch-size robustness studies of normalization layers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gnexp.api import Mistake, build_norm, check, load_study, train
    from gnexp.models.conversion.convert import Conversion, convert

__all__ = ["Conversion", "Mistake", "build_norm", "check", "convert", "load_study", "train"]

# Where each public name is; torch and pandas are imported when one is used, not by `import gnexp`.
_HOMES = {
    **dict.fromkeys(("Mistake", "build_norm", "check", "load_study", "train"), "gnexp.api"),
    **dict.fromkeys(("Conversion", "convert"), "gnexp.models.conversion.convert"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gnexp' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
