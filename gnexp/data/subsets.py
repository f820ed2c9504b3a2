"""Fixed subsets with as many images of each class as of any other, and a fixed test order.

The draws are PCG64's raw stream, which NumPy keeps stable, so that a subset means the same images
next year.
"""

import numpy as np

_SUBSET, _TEST_ORDER, _HELD_OUT = 1, 2, 3  # what a stream is for


def balanced_subset(y_N: np.ndarray, limit: int | None, key: str) -> np.ndarray:
    """Return the ascending indices of `limit` examples, per class as equal in number as can be.

    y_N: integer labels. None keeps all. The choice is fixed, and a smaller limit's subset lies
    within a larger one's. A class that runs out leaves its share to the others.
    Raises ValueError naming `key` when the limit is larger than the set or leaves a class empty.
    """
    if limit is None:
        return np.arange(len(y_N))
    classes = np.unique(y_N)
    if limit > len(y_N):
        raise ValueError(f"{key}={limit} is larger than the set: it has {len(y_N)} images")
    if limit < len(classes):
        raise ValueError(
            f"{key}={limit} leaves a class without images: use at least {len(classes)}, "
            "one for each class"
        )
    # Deal images out in rounds, one per class, and stop at the limit.
    round_of = np.empty(len(y_N), np.int64)
    turn_of = np.empty(len(y_N), np.int64)
    places = _shuffled(len(classes), _SUBSET)
    for position, label in enumerate(classes):
        rows = np.flatnonzero(y_N == label)
        round_of[rows[_shuffled(len(rows), _SUBSET, position + 1)]] = np.arange(len(rows))
        turn_of[rows] = places[position]
    return np.sort(np.lexsort((turn_of, round_of))[:limit])


def stratified_part(y_N: np.ndarray, count: int) -> np.ndarray:
    """Return the ascending indices of `count` examples, of every class as large a part as of all.

    y_N: integer labels. Each class has at least one example in the part and one outside; the choice
    is fixed. Raises ValueError when the sizes of the classes do not allow that.
    """
    classes, sizes = np.unique(y_N, return_counts=True)
    if sizes.min() < 2:
        raise ValueError(f"class {classes[sizes.argmin()]} has one image, and each side needs one")
    if not len(classes) <= count <= len(y_N) - len(classes):
        most = len(y_N) - len(classes)
        raise ValueError(f"each side needs one of each class: type {len(classes)} to {most} images")
    exact = count * sizes / len(y_N)
    taken = np.clip(np.floor(exact), 1, sizes - 1).astype(np.int64)
    places = _shuffled(len(classes), _HELD_OUT)
    while (left := count - taken.sum()) != 0:  # to whom most is due, in a fixed turn among equals
        step = 1 if left > 0 else -1
        free = taken < sizes - 1 if left > 0 else taken > 1
        due = np.where(free, step * (exact - taken), -np.inf)
        taken[np.lexsort((places, -due))[0]] += step
    parts = []
    for position, label in enumerate(classes):
        rows = np.flatnonzero(y_N == label)
        parts.append(rows[_shuffled(len(rows), _HELD_OUT, position + 1)[: taken[position]]])
    return np.sort(np.concatenate(parts))


def fixed_test_order(count: int) -> np.ndarray:
    """Return the permutation (count,) that every test set of this size is shuffled by.

    Class folders come sorted, which would matter to anything that evaluates in batches.
    """
    return _shuffled(count, _TEST_ORDER)


def _shuffled(count: int, *stream: int) -> np.ndarray:
    return np.argsort(np.random.PCG64(list(stream)).random_raw(count), kind="stable")
