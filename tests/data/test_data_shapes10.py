"""shapes10, the data set that needs no file."""

import hashlib

import numpy as np
import pytest

from gnexp.data.sources import load_images
from gnexp.data.synthetic import SHAPES10_CLASSES, shapes10


def sha256(*arrays):
    joined = b"".join(np.ascontiguousarray(a, a.dtype.newbyteorder("<")).tobytes() for a in arrays)
    return hashlib.sha256(joined).hexdigest()


@pytest.fixture(scope="module")
def default_set():
    return shapes10()


def test_the_default_set_is_these_bytes_on_every_platform(default_set):
    # Which were looked at: no image twice, no class that colours or a linear model would tell.
    assert sha256(*default_set) == (
        "268dd0c644a658640f17e4d3ce7bbb88a73d6320649a63138be4929c824e5444"
    )
    x_train, y_train, x_test, y_test = default_set
    assert (x_train.shape, x_test.shape) == ((5120, 3, 32, 32), (1000, 3, 32, 32))
    assert x_train.dtype == np.uint8
    assert y_train.dtype == y_test.dtype == np.int64
    assert np.bincount(y_train).tolist() == [512] * len(SHAPES10_CLASSES) == [512] * 10
    assert np.bincount(y_test).tolist() == [100] * 10


@pytest.mark.parametrize("size", [0, 159, 161])
def test_a_smaller_set_is_the_beginning_of_a_larger_one(default_set, size):
    x_train, y_train, x_test, y_test = shapes10(size, size)
    for small, large in zip((x_train, y_train, x_test, y_test), default_set):
        np.testing.assert_array_equal(small, large[:size])


def test_another_seed_gives_other_images_and_labels():
    first, second = shapes10(100, 100, seed=0), shapes10(100, 100, seed=1)
    assert all(sha256(a) != sha256(b) for a, b in zip(first, second))


def test_the_source_draws_as_many_images_as_typed():
    images = load_images("shapes10", train_limit=6000, test_limit=20)
    assert images.x_train.shape == (6000, 3, 32, 32)
    assert np.bincount(images.y_test).tolist() == [2] * 10
    assert images.classes == SHAPES10_CLASSES
    assert images.title == "shapes10"


@pytest.mark.parametrize(
    "values", [{"train_limit": 9}, {"train_limit": 50_001}, {"test_limit": 10_001}, {"size": 64}]
)
def test_what_shapes10_cannot_be_is_refused_by_key(values):
    key, value = next(iter(values.items()))
    with pytest.raises(ValueError, match=rf"data\.{key}={value}"):
        load_images("shapes10", **values)
