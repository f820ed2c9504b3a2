"""Models that gnexp did not write: looked up in torchvision or timm, or the user's own.

They are built with random weights, for the classes of the data, and must be image classifiers:
(N, 3, H, W) -> logits (N, K), also in train mode.

Shapes: N examples, K classes, C channels, H and W pixels.
"""

import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gnexp.config.unknown import unknown
from gnexp.models.conversion.find_norms import Found, find_norms
from gnexp.models.conversion.replace_norms import (
    Factory,
    out_of_place,
    replace_norms,
    try_example,
)
from gnexp.norms.module_state import copied, lazy_tensors
from gnexp.norms.statistic_size import evaluating
from gnexp.norms.trials import error_text

PREFIX = "convert."  # of keys on the command line


def constructor(library: str, name: str) -> Callable[..., nn.Module]:
    """Return what builds a library's model, from the keywords of its options and `num_classes`.

    library: "torchvision" or "timm". Raises ValueError for a name it does not have, with the
    nearest, and when timm is not installed.
    """
    if library == "timm":
        try:
            import timm
        except ImportError:
            raise ValueError(
                "model=timm needs timm, which is not installed: pip install timm"
            ) from None
        known, list_models = timm.is_model(name), timm.list_models
        build: Callable[..., nn.Module] = functools.partial(timm.create_model, name)
    else:
        from torchvision import models

        # Classifiers, without detection, segmentation and video.
        list_models = functools.partial(models.list_models, module=models)
        known = name in list_models()
        build = functools.partial(models.get_model, name)
    if not known:
        valid = list_models()
        sentence = f"model.name={name} is not one of the {len(valid)} classifiers of {library}"
        raise ValueError(unknown(sentence, name, valid, listed=()))
    return build


def is_constructor(path: str) -> bool:
    """Return whether an import path is that of a library's registered builder of a classifier.

    Nothing is imported but the library itself, so that no other path into it is taken.
    """
    library, name = path.partition(".")[0], path.rpartition(".")[2]
    if library not in ("torchvision", "timm"):
        return False
    try:
        constructor(library, name)
    except ValueError:
        return False
    if library == "timm":
        import timm

        builder = timm.model_entrypoint(name)
    else:
        from torchvision import models

        builder = models.get_model_builder(name)
    places = (f"{library}.models", builder.__module__)
    return path in [f"{place}.{builder.__name__}" for place in places]


def build_external(
    construct: Callable[..., Any],
    num_classes: int,
    options: Mapping[str, Any],
    label: str,
    shape: Sequence[int],
    always: bool = True,
) -> nn.Module:
    """Return construct(num_classes=..., **options), its lazy layers made for the images.

    label: what people call it, such as "model.name=resnet50". shape: (C, H, W) of an image. always:
    it is a library's: pass `num_classes`, rather than only to what takes it, and do not let it
    warn. Raises ValueError with what the constructor raised.
    """
    words = dict(options)
    if always or _takes(construct, "num_classes"):
        words["num_classes"] = num_classes
    try:
        with warnings.catch_warnings():
            if always:  # of defaults to come, such as how it draws weights that are drawn anew
                warnings.simplefilter("ignore")
            model = construct(**words)
    except (Exception, SystemExit) as error:  # whatever the user's code does
        typed = ", ".join(f"{key}={value}" for key, value in words.items())
        raise ValueError(
            f"{label}: building it with ({typed}) raised {error_text(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{label} must build an nn.Module, not {type(model).__name__}")
    _materialize(model, shape, label)
    try:
        return copied(model)  # its code may return one object each time
    except Exception as error:
        raise ValueError(
            f"{label} builds a model that cannot be copied: {error_text(error)}"
        ) from error


def _materialize(model: nn.Module, shape: Sequence[int], label: str) -> None:
    """Let lazy layers see images once, by which they learn their channels."""
    if not lazy_tensors(model):
        return
    with evaluating(model):
        _logits(model, _images(shape), label)
    if left := lazy_tensors(model):
        raise ValueError(
            f"{label} has a lazy layer that no image reaches ({left[0]}), so that its shape is not"
            " known; take it out, or build it with its channels"
        )


def _takes(construct: Callable[..., Any], key: str) -> bool:
    try:
        parameters = inspect.signature(construct).parameters.values()
    except (TypeError, ValueError):  # of a builtin
        return False
    return any(p.name == key or p.kind is p.VAR_KEYWORD for p in parameters)


def _images(shape: Sequence[int]) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def _logits(model: nn.Module, x_NCHW: Tensor, label: str) -> Any:
    """Return what the model gives for images; raises ValueError where it does not take them."""
    try:
        with torch.no_grad():
            return model(x_NCHW)
    except Exception as error:
        height, width = x_NCHW.shape[2:]
        raise ValueError(
            f"{label} does not take images of {height}x{width} pixels ({error_text(error)}); use"
            " images of another size, an option of its constructor (model.options={KEY:VALUE}), or"
            " another model"
        ) from error


def examine(
    model: nn.Module, shape: Sequence[int], num_classes: int, label: str, **chosen: Any
) -> Found:
    """Return the normalization layers of a new model, after a look at what it makes of images.

    shape: (C, H, W) of an image. chosen: `only` and `leave` of `find_norms`. Raises ValueError for
    a model that does not take such images, that does not return logits, or that has no layer to
    replace.
    """
    x_NCHW, wanted = _images(shape), (2, num_classes)
    for training, mode in ((False, "evaluation"), (True, "train")):
        with torch.random.fork_rng(devices=[]):
            logits = _logits(copied(model).train(training), x_NCHW, label)
        is_tensor = isinstance(logits, Tensor)
        if is_tensor and tuple(logits.shape) == wanted:
            continue
        given = f"a tensor {tuple(logits.shape)}" if is_tensor else f"a {type(logits).__name__}"
        raise ValueError(
            f"{label} returns {given} for {len(x_NCHW)} images in {mode} mode, and must return"
            f" logits {wanted}; its constructor may have an option for it, as"
            " model.options={KEY:VALUE}"
        )
    try:
        found = find_norms(model, x_NCHW, prefix=PREFIX, **chosen)
    except ValueError as error:
        raise ValueError(f"{label}: {error}") from None
    if not found.sites:
        why = f", since {found.left[0].reason}" if found.left else ""
        raise ValueError(
            f"{label} has no normalization layer that norm= could replace{why}; choose another"
        )
    return found


def with_norms(
    model: nn.Module,
    found: Found,
    build: Factory,
    shape: Sequence[int],
    *,
    weight_standardization: bool,
) -> tuple[nn.Module, list[str]]:
    """Replace the norms of a new model, in place, and return it with one line for each.

    found, shape: as in `examine`, of a model of the same constructor and options. gamma and beta
    start as the norm has them: a library's own start, such as zeros, is not that of the protocol.
    weight_standardization: of the convolutions right before a norm. Activations stop working in
    place, for what hooks see.
    Raises ValueError, naming the layer, for what the norm refuses, and for a model that does not
    take images any more.
    """
    lines = out_of_place(model)
    model, replaced, notes = replace_norms(
        *(model, found, build), keep_affine=False, weight_standardization=weight_standardization
    )
    try_example(model, found, _images(shape), PREFIX)
    return model, [*map(str, replaced), *map(str, found.left), *lines, *notes]
