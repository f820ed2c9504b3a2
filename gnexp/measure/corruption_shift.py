"""Accuracy under distribution shift: the test images, corrupted, in evaluation mode.

Axes: N images, S pixels along a side.
"""

import copy
from collections.abc import Iterable
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from gnexp.data.corruptions.cifar_c import CifarC
from gnexp.data.corruptions.table import corrupt
from gnexp.data.device_images import DeviceDataset
from gnexp.measure.preserve_state import preserve_state
from gnexp.training.evaluate import evaluate
from gnexp.training.precision import matrix_precision

CLEAN = "clean"
# Of corrupted images, in a process; 90 sets of 1,000 CIFAR images are 276e6.
KEPT_BYTES = 600 * 2**20

_KEPT: "WeakKeyDictionary[DeviceDataset, dict[tuple, Tensor]]" = WeakKeyDictionary()


def measure_shift(
    model: nn.Module,
    images: DeviceDataset,
    names: Iterable[str],
    severities: Iterable[int],
    *,
    seed: int = 0,
    limit: int | None = None,
    cifar_c: CifarC | None = None,
    precision: str = "fp32",
) -> list[dict[str, str | int | float]]:
    """Score the model on the first `limit` test images (None: all), clean and corrupted.

    Rows {corruption, severity, n, accuracy in [0, 1], loss in nats}: "clean" at severity 0 first,
    then each name with each severity. All rows are of the same n images. seed: of the corruptions.
    cifar_c: where it has a name's published images these are used; other names are computed.
    The model, on the images' device, is left bit-identical. Corrupted images are kept for the next
    model, up to KEPT_BYTES. Raises ValueError, before any work, for files that do not fit.
    """
    severities = tuple(severities)
    count = min(limit or len(images.x_test), len(images.x_test))
    part = copy.copy(images)
    part.x_test, part.y_test = images.x_test[:count], images.y_test[:count]
    if cifar_c is not None:  # fails, if at all, before the first evaluation
        _positions(images, cifar_c)
    rows = []
    with preserve_state(model), matrix_precision(precision):
        rows.append(_row(model, part, CLEAN, 0, precision))
        for name in names:
            for severity in severities:
                part.x_test = corrupted_test(images, name, severity, seed, count, cifar_c)
                rows.append(_row(model, part, name, severity, precision))
    return rows


def _positions(images: DeviceDataset, cifar_c: CifarC) -> np.ndarray:
    return cifar_c.positions(images.y_test.cpu().numpy(), images.x_test.shape[-1])


def _row(
    model: nn.Module, part: DeviceDataset, name: str, severity: int, precision: str
) -> dict[str, str | int | float]:
    scores = evaluate(model, part, precision=precision)
    found = {"n": len(part.x_test), "accuracy": scores.accuracy, "loss": scores.loss}
    return {"corruption": name, "severity": severity, **found}


def corrupted_test(
    images: DeviceDataset,
    name: str,
    severity: int,
    seed: int,
    count: int,
    cifar_c: CifarC | None = None,
) -> Tensor:
    """Return the first `count` test images corrupted, uint8 (count, 3, S, S), on their device.

    Kept for the next call as long as `images` lives and KEPT_BYTES suffice; what no longer fits is
    made anew each time. (Dropping the oldest instead would keep nothing that the next model, which
    asks in the same order, finds.) Not to be written to.
    """
    published = cifar_c is not None and name in cifar_c.images
    source = cifar_c.root.resolve() if published else seed
    kept, key = _KEPT.setdefault(images, {}), (name, severity, count, source)
    if key in kept:
        return kept[key]
    if published:
        published_N3SS = cifar_c.rows(name, severity, _positions(images, cifar_c)[:count])
        x_N3SS = torch.from_numpy(published_N3SS).to(images.x_test.device)
    else:
        x_N3SS = corrupt(images.x_test[:count], name, severity, seed)
    held = sum(x.nbytes for each in _KEPT.values() for x in each.values())
    if held + x_N3SS.nbytes <= KEPT_BYTES:
        kept[key] = x_N3SS
    return x_N3SS
