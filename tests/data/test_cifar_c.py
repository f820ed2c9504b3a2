"""The published CIFAR-10-C files: read where they lie, and refused in one sentence."""

import numpy as np
import pytest

from gnexp.data.corruptions.cifar_c import RELEASED, load_cifar_c
from gnexp.data.subsets import balanced_subset, fixed_test_order

SHAPE = (50_000, 32, 32, 3)
LABELS = np.random.default_rng(0).integers(0, 10, 10_000).astype(np.uint8)


def write(folder, name, shape=SHAPE, dtype=np.uint8):
    """Write a file of zeros that takes no room on the disk, and return it to be written into."""
    return np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype=dtype, shape=shape)


@pytest.fixture
def folder(tmp_path):
    """A folder as the release has it, with two corruptions of its fifteen and one of its four."""
    for name in ("fog", "snow", "gaussian_blur"):
        write(tmp_path, name)
    np.save(tmp_path / "labels.npy", np.tile(LABELS, 5))
    return tmp_path


def test_files_are_mapped_into_memory_not_read(folder):
    release = load_cifar_c(str(folder), ["fog", "gaussian_blur", "pure_contrast"])
    assert set(release.images) == {"fog", "gaussian_blur"}  # the release has no pure ones
    assert all(isinstance(each, np.memmap) for each in release.images.values())
    assert release.labels.dtype == np.int64
    assert np.array_equal(release.labels, LABELS)


def test_an_image_is_found_at_its_severity_and_position(folder):
    file = write(folder, "fog")
    file[3 * 10_000 + 4321, 5, 6] = (7, 8, 9)
    file.flush()
    release = load_cifar_c(folder, ["fog"])
    x = release.rows("fog", 4, np.array([17, 4321]))
    assert x.shape == (2, 3, 32, 32)
    assert x.dtype == np.uint8
    assert x[1, :, 5, 6].tolist() == [7, 8, 9]
    assert x.sum() == 24
    assert release.rows("fog", 3, np.array([17, 4321])).sum() == 0


@pytest.mark.parametrize("limit", [None, 10, 1000])
def test_positions_undo_the_limit_and_the_order_in_which_test_images_are_loaded(folder, limit):
    x = np.arange(10_000)  # stands for the images, in the published order
    subset = balanced_subset(LABELS, limit, "limit")
    loaded = x[subset][fixed_test_order(len(subset))]
    at = load_cifar_c(folder, ["fog"]).positions(LABELS[loaded].astype(np.int64), 32)
    assert np.array_equal(at, loaded)


def test_every_name_of_the_release_may_be_asked_for(tmp_path):
    for name in RELEASED:
        write(tmp_path, name)
    np.save(tmp_path / "labels.npy", np.tile(LABELS, 5))
    assert len(load_cifar_c(tmp_path, RELEASED).images) == 19


def test_test_images_in_another_order_do_not_fit(folder):
    release = load_cifar_c(folder, ["fog"])
    for labels in (np.sort(LABELS)[fixed_test_order(10_000)], np.zeros(3), np.zeros(10_001)):
        with pytest.raises(ValueError, match=r"root=.* does not fit the data: .* labels\.npy"):
            release.positions(labels, 32)
    with pytest.raises(ValueError, match="images of 32x32, the data are 28x28"):
        release.positions(LABELS[fixed_test_order(10_000)], 28)


def test_a_missing_file_is_named_beside_what_is_there(folder):
    with pytest.raises(
        ValueError, match=r"root=.* lacks frost\.npy: it holds fog\.npy, gaussian_blur\.npy, labels"
    ):
        load_cifar_c(folder, ["fog", "frost"])
    (folder / "labels.npy").unlink()
    with pytest.raises(ValueError, match=r"lacks labels\.npy"):
        load_cifar_c(folder, ["fog"])
    with pytest.raises(ValueError, match=r"nowhere is not a folder"):
        load_cifar_c(folder / "nowhere", ["fog"])


@pytest.mark.parametrize(
    ("shape", "dtype", "sentence"),
    [
        ((10_000, 32, 32, 3), np.uint8, r"has shape \(10000, 32, 32, 3\): it must be \(50000, 32"),
        ((50_000, 3, 32, 32), np.uint8, r"has shape \(50000, 3, 32, 32\): it must be"),
        (SHAPE, np.float32, "has dtype float32: it must be uint8"),
    ],
)
def test_a_file_of_another_shape_or_dtype_is_refused(folder, shape, dtype, sentence):
    write(folder, "snow", shape, dtype)
    with pytest.raises(ValueError, match=rf"root=.*: snow\.npy {sentence}"):
        load_cifar_c(folder, ["snow"])


@pytest.mark.parametrize("content", [b"", b"not numpy", b"PK\x05\x06" + bytes(18), "cut", "pickle"])
def test_a_file_that_is_cut_short_or_no_array_is_refused_in_one_sentence(folder, content):
    path = folder / "fog.npy"
    if content == "cut":
        with path.open("r+b") as file:
            file.truncate(1000)
    elif content == "pickle":
        np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"root=.*: fog\.npy is") as caught:
        load_cifar_c(folder, ["fog"])
    assert "\n" not in str(caught.value)


def test_labels_must_repeat_for_every_severity(folder):
    other = np.tile(LABELS, 5)
    other[30_005] += 1
    np.save(folder / "labels.npy", other)
    with pytest.raises(ValueError, match=r"labels\.npy differs between severity 1 and 4"):
        load_cifar_c(folder, ["fog"])
    np.save(folder / "labels.npy", np.tile(LABELS, 5).astype(np.float32))
    with pytest.raises(ValueError, match=r"labels\.npy has dtype float32"):
        load_cifar_c(folder, ["fog"])


def test_an_unknown_name_is_refused_with_the_nearest_of_the_release(folder):
    with pytest.raises(ValueError, match="corruptions=spater is unknown; did you mean spatter"):
        load_cifar_c(folder, ["spater"])
