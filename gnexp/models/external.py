"""Models that gnexp did not write: looked up in torchvision or timm, or the user's own.

They are built with random weights, for the classes of the data, and must be image classifiers:
(N, 3, H, W) -> logits (N, K), also in train mode.

Shapes: N examples, K classes, C channels, H and W pixels.
"""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gnexp.config.unknown import unknown
from gnexp.models.conversion.find_norms import Found, find_norms
from gnexp.models.conversion.replace_norms import out_of_place, replace_norms, try_example
from gnexp.norms.copying import copied, lazy_tensors

NormFactory = Callable[[int], nn.Module]
PREFIX = "convert."  # of keys on the command line


def constructor(library: str, name: str) -> Callable[..., nn.Module]:
    """Return what builds a library's model, from the keywords of its options and `num_classes`.

    library: "torchvision" or "timm". Raises ValueError for a name it does not have, with the
    nearest, and when timm is not installed.
    """
    return _timm(name) if library == "timm" else _torchvision(name)


def _torchvision(name: str) -> Callable[..., nn.Module]:
    from torchvision import models

    valid = models.list_models(module=models)  # classifiers, without detection, segmentation, video
    if name not in valid:
        raise ValueError(_unknown("torchvision", name, valid))
    return models.get_model_builder(name)


def _timm(name: str) -> Callable[..., nn.Module]:
    try:
        import timm
    except ImportError:
        raise ValueError(
            "model=timm needs timm, which is not installed: pip install timm"
        ) from None

    if not timm.is_model(name):
        raise ValueError(_unknown("timm", name, timm.list_models()))

    def build(**options: Any) -> nn.Module:
        return timm.create_model(name, **options)

    return build


def is_constructor(path: str) -> bool:
    """Return whether an import path is that of a library's registered builder of a classifier.

    Nothing is imported but the library itself, so that no other path into it is taken.
    """
    library, _, _ = path.partition(".")
    name = path.rpartition(".")[2]
    if library == "torchvision":
        from torchvision import models

        if name not in models.list_models(module=models):
            return False
        builder = models.get_model_builder(name)
    elif library == "timm":
        try:
            import timm
        except ImportError:
            return False
        if not timm.is_model(name):
            return False
        builder = timm.model_entrypoint(name)
    else:
        return False
    places = (f"{library}.models", builder.__module__)
    return path in [f"{place}.{builder.__name__}" for place in places]


def _unknown(library: str, name: str, valid: Sequence[str]) -> str:
    sentence = f"model.name={name} is not one of the {len(valid)} classifiers of {library}"
    return unknown(sentence, name, valid, listed=())


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
            f"{label}: building it with ({typed}) raised {type(error).__name__}: {_first(error)}"
        ) from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{label} must build an nn.Module, not {type(model).__name__}")
    _materialize(model, shape, label)
    try:
        return copied(model)  # its code may return one object each time
    except Exception as error:
        raise ValueError(
            f"{label} builds a model that cannot be copied: {type(error).__name__}: {_first(error)}"
        ) from error


def _materialize(model: nn.Module, shape: Sequence[int], label: str) -> None:
    """Let lazy layers see images once, by which they learn their channels."""
    if not lazy_tensors(model):
        return
    modes = [(module, module.training) for module in model.modules()]
    try:
        with torch.no_grad():
            model.eval()(_images(shape))
    except Exception as error:
        raise ValueError(_does_not_take(label, shape, error)) from error
    for module, training in modes:
        module.training = training
    if left := lazy_tensors(model):
        raise ValueError(
            f"{label} has a lazy layer that no image reaches ({left[0]}), so that its shape is not"
            " known; take it out, or build it with its channels"
        )


def _does_not_take(label: str, shape: Sequence[int], error: Exception) -> str:
    return (
        f"{label} does not take images of {shape[1]}x{shape[2]} pixels ({type(error).__name__}:"
        f" {_first(error)}); use images of another size, an option of its constructor"
        " (model.options={KEY:VALUE}), or another model"
    )


def _takes(construct: Callable[..., Any], key: str) -> bool:
    try:
        parameters = inspect.signature(construct).parameters.values()
    except (TypeError, ValueError):  # of a builtin
        return False
    return any(p.name == key or p.kind is p.VAR_KEYWORD for p in parameters)


def examine(
    model: nn.Module,
    shape: Sequence[int],
    num_classes: int,
    label: str,
    **chosen: Any,
) -> Found:
    """Return the normalization layers of a new model, after a look at what it makes of images.

    shape: (C, H, W) of an image. chosen: `only` and `leave` of `find_norms`. Raises ValueError for
    a model that does not take such images, that does not return logits, or that has no layer to
    replace.
    """
    x_NCHW = _images(shape)
    for training in (False, True):
        _require_logits(model, x_NCHW, num_classes, label, training)
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


def _images(shape: Sequence[int]) -> Tensor:
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))


def _require_logits(
    model: nn.Module, x_NCHW: Tensor, num_classes: int, label: str, training: bool
) -> None:
    trial = copied(model).train(training)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            logits = trial(x_NCHW)
    except Exception as error:
        raise ValueError(_does_not_take(label, x_NCHW.shape[1:], error)) from error
    wanted = len(x_NCHW), num_classes
    if isinstance(logits, Tensor) and tuple(logits.shape) == wanted:
        return
    mode = "train" if training else "evaluation"
    is_tensor = isinstance(logits, Tensor)
    given = f"a tensor {tuple(logits.shape)}" if is_tensor else f"a {type(logits).__name__}"
    raise ValueError(
        f"{label} returns {given} for {len(x_NCHW)} images in {mode} mode, and must return logits"
        f" {wanted}; its constructor may have an option for it, as model.options={{KEY:VALUE}}"
    )


def with_norms(
    model: nn.Module,
    found: Found,
    build: NormFactory,
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
        model, found, build, affine="reset", standardize=weight_standardization
    )
    try_example(model, found, _images(shape), PREFIX)
    return model, [*map(str, replaced), *map(str, found.left), *lines, *notes]


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["without a message"])[0]
