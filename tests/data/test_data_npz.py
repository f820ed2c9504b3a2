"""Dataset from one .npz file."""

import numpy as np
import pytest

from gnexp.data.sources import load_images
from gnexp.data.subsets import fixed_test_order

RNG = np.random.default_rng(1)


def good_arrays(shape=(10, 10, 3)):
    x = RNG.integers(0, 256, (60, *shape), dtype=np.uint8)
    y = np.arange(60) % 3
    return {"x_train": x[:40], "y_train": y[:40], "x_test": x[40:], "y_test": y[40:]}


def saved(folder, arrays, name="data.npz"):
    np.savez(folder / name, **arrays)
    return folder / name


@pytest.mark.parametrize(
    ("shape", "to_channels_first"),
    [
        ((10, 10, 3), lambda x: x.transpose(0, 3, 1, 2)),
        ((3, 10, 10), lambda x: x),
        ((10, 10), lambda x: np.stack([x] * 3, axis=1)),
        ((10, 10, 1), lambda x: np.stack([x[..., 0]] * 3, axis=1)),
        ((1, 10, 10), lambda x: np.concatenate([x] * 3, axis=1)),
        ((28, 28), lambda x: np.stack([np.pad(x, ((0, 0), (2, 2), (2, 2)))] * 3, axis=1)),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_every_layout_becomes_three_channels_first(tmp_path, shape, to_channels_first):
    arrays = good_arrays(shape)
    images = load_images("npz", saved(tmp_path, arrays))
    np.testing.assert_array_equal(images.x_train, to_channels_first(arrays["x_train"]))
    np.testing.assert_array_equal(images.y_train, arrays["y_train"])
    order = fixed_test_order(20)
    np.testing.assert_array_equal(images.x_test, to_channels_first(arrays["x_test"])[order])
    assert images.x_train.dtype == np.uint8
    assert images.y_train.dtype == np.int64
    assert images.title == "data"


def test_medmnist_files_are_read_with_their_columns_of_labels(tmp_path):
    arrays = good_arrays((28, 28))
    medmnist = {
        "train_images": arrays["x_train"],
        "train_labels": arrays["y_train"][:, None].astype(np.uint8),
        "val_images": arrays["x_test"][:5],
        "val_labels": arrays["y_test"][:5, None],
        "test_images": arrays["x_test"],
        "test_labels": arrays["y_test"][:, None].astype(np.uint8),
    }
    ours = load_images("npz", saved(tmp_path, arrays, "a.npz"))
    theirs = load_images("npz", saved(tmp_path, medmnist, "b.npz"))
    assert ours.checksum == theirs.checksum


def test_a_folder_with_one_npz_file_will_do_and_with_two_will_not(tmp_path):
    path = saved(tmp_path, good_arrays())
    assert load_images("npz", tmp_path).checksum == load_images("npz", path).checksum
    saved(tmp_path, good_arrays(), "other.npz")
    with pytest.raises(ValueError, match=r"2 \.npz files"):
        load_images("npz", tmp_path)


def test_labels_with_gaps_are_numbered_anew_and_stay_the_names_of_their_classes(tmp_path):
    arrays = good_arrays()
    arrays["y_train"], arrays["y_test"] = arrays["y_train"] * 5 + 2, arrays["y_test"] * 5 + 2
    images = load_images("npz", saved(tmp_path, arrays))
    assert images.classes == ("2", "7", "12")
    assert sorted(set(images.y_train)) == [0, 1, 2]


def test_limits_are_balanced_and_size_resizes(tmp_path):
    path = saved(tmp_path, good_arrays((64, 64, 3)))
    images = load_images("npz", path, train_limit=9, test_limit=6, size=32, title="Mine")
    assert images.x_train.shape == (9, 3, 32, 32)
    assert np.bincount(images.y_train).tolist() == [3, 3, 3]
    assert np.bincount(images.y_test).tolist() == [2, 2, 2]
    assert images.title == "Mine"


def change(**arrays):
    return lambda good: {**good, **{key: make(good) for key, make in arrays.items()}}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (
            lambda good: {"x_train": good["x_train"], "images": good["x_test"]},
            "lacks y_train.*images",
        ),
        (change(x_train=lambda g: g["x_train"] / 255), "x_train has dtype float64"),
        (change(x_train=lambda g: g["x_train"][:, :9]), "9x10 pixels"),
        (change(x_train=lambda g: g["x_train"][:, :5, :5]), "5x5 pixels"),
        (change(x_test=lambda g: g["x_test"][1:]), "19 images but y_test 20 labels"),
        (change(x_test=lambda g: g["x_test"].ravel()), r"x_test has shape \(6000,\)"),
        (change(y_train=lambda g: g["y_train"] * 1.0), "y_train has dtype float64"),
        (change(y_train=lambda g: np.eye(3, dtype=int)[g["y_train"]]), r"shape \(40, 3\)"),
        (change(y_test=lambda g: g["y_test"] - 1), "negative label, -1"),
        (change(y_test=lambda g: g["y_test"] + 1), "y_test has labels that y_train lacks: 3"),
        (change(y_train=lambda g: g["y_train"] * 0, y_test=lambda g: g["y_test"] * 0), "one class"),
        (change(x_test=lambda g: g["x_test"][:0], y_test=lambda g: g["y_test"][:0]), "no images"),
        (change(y_train=lambda g: np.array([None] * 40)), "y_train cannot be read"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_name(tmp_path, spoil, words):
    path = saved(tmp_path, spoil(good_arrays()))
    with pytest.raises(ValueError, match=rf"data\.root=.*{words}"):
        load_images("npz", path)


@pytest.mark.parametrize("damage", ["emptied", "cut", "flipped"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = saved(tmp_path, good_arrays())
    content = bytearray(path.read_bytes())
    content[3000] ^= 1
    path.write_bytes({"emptied": b"", "cut": content[:-30], "flipped": content}[damage])
    with pytest.raises(ValueError, match=r"data\.root=.*data\.npz.*truncated"):
        load_images("npz", path)


def test_a_single_array_or_a_missing_file_is_no_npz_file(tmp_path):
    np.save(tmp_path / "data.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"not a \.npz file"):
        load_images("npz", tmp_path / "data.npy")
    with pytest.raises(ValueError, match="does not exist"):
        load_images("npz", tmp_path / "none.npz")
