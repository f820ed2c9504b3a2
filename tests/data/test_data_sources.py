"""Data sets by name: published ones in a folder or to download, limits, order and checksum."""

import gzip
import hashlib
import io
import pickle
import tarfile
import urllib.error

import numpy as np
import pytest

from gnexp.data import downloads
from gnexp.data.sources import load_images
from gnexp.data.subsets import balanced_subset, fixed_test_order

RNG = np.random.default_rng(0)
IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")
IDX_NAMES += tuple(name.replace("train", "t10k") for name in IDX_NAMES)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gnexp"


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


# Fashion-MNIST: four idx files


def idx_bytes(array):
    sizes = b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    return bytes((0, 0, 8, array.ndim)) + sizes + array.tobytes()


@pytest.fixture(scope="module")
def fashion():
    x = RNG.integers(0, 256, (50, 28, 28), dtype=np.uint8)
    y = (np.arange(50) % 10).astype(np.uint8)
    return dict(zip(IDX_NAMES, map(idx_bytes, (x[:30], y[:30], x[30:], y[30:])))), x, y


@pytest.mark.parametrize(("below", "zipped"), [("", True), ("FashionMNIST/raw", False)])
def test_fashion_mnist_files_are_read_where_they_lie_zipped_or_not(
    tmp_path, fashion, below, zipped
):
    files, x, y = fashion
    folder = tmp_path / "data" / below
    folder.mkdir(parents=True)
    for name, content in files.items():
        path = folder / (f"{name}.gz" if zipped else name)
        path.write_bytes(gzip.compress(content) if zipped else content)
    images = load_images("fashion_mnist", tmp_path / "data", download=False)
    assert images.title == "Fashion-MNIST"
    assert images.classes[9] == "Ankle boot"
    np.testing.assert_array_equal(images.y_train, y[:30])
    for channel in range(3):  # gray in each, with a frame of two black pixels
        np.testing.assert_array_equal(images.x_train[:, channel, 2:30, 2:30], x[:30])
    assert images.x_train.shape == (30, 3, 32, 32)
    assert images.x_train.sum() == 3 * x[:30].sum(dtype=np.int64)
    order = fixed_test_order(20)
    np.testing.assert_array_equal(images.x_test[:, 0, 2:30, 2:30], x[30:][order])
    np.testing.assert_array_equal(images.y_test, y[30:][order])


@pytest.mark.parametrize("damage", ["gzip cut", "idx cut", "not idx", "not gzip"])
def test_a_damaged_fashion_mnist_file_is_named(tmp_path, fashion, damage):
    files, _, _ = fashion
    for name, content in files.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    victim = tmp_path / f"{IDX_NAMES[2]}.gz"
    content = files[IDX_NAMES[2]]
    victim.write_bytes(
        {
            "gzip cut": gzip.compress(content)[:-500],
            "idx cut": gzip.compress(content[:-1]),
            "not idx": gzip.compress(b"hello"),
            "not gzip": b"hello",
        }[damage]
    )
    with pytest.raises(ValueError, match=rf"{victim.name} there is corrupt"):
        load_images("fashion_mnist", tmp_path)


# CIFAR: torchvision's classes with the md5 sums of a small imitation


@pytest.fixture
def cifar(monkeypatch, tmp_path):
    """The files of a small CIFAR-10 as name -> bytes, its archive's bytes, images and labels."""
    datasets = pytest.importorskip("torchvision.datasets")
    x = RNG.integers(0, 256, (60, 3072), dtype=np.uint8)
    y = np.tile(np.arange(10), 6)
    files = {"batches.meta": pickle.dumps({"label_names": [f"thing{i}" for i in range(10)]})}
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for i, name in enumerate(names):
        part = slice(10 * i, 10 * i + 10)
        files[name] = pickle.dumps({"data": x[part], "labels": y[part].tolist()})
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    source = datasets.CIFAR10
    monkeypatch.setattr(source, "train_list", [[name, sums[name]] for name in names[:5]])
    monkeypatch.setattr(source, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(source, "meta", {**source.meta, "md5": sums["batches.meta"]})
    monkeypatch.setattr(source, "tgz_md5", hashlib.md5(packed.getvalue()).hexdigest())
    return files, packed.getvalue(), x.reshape(60, 3, 32, 32), y


@pytest.mark.parametrize("form", ["batches folder", "its parent", "renamed folder", "archive"])
def test_cifar10_is_read_from_every_form_that_people_have(tmp_path, cifar, offline, form):
    files, packed, x, y = cifar
    root = tmp_path / "data"
    folder = root / "cifar-10-batches-py" if form == "its parent" else root
    if form == "batches folder":
        root = folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    if form == "archive":
        (root / "cifar-10-python.tar.gz").write_bytes(packed)
    else:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    images = load_images("cifar10", root)
    assert images.title == "CIFAR-10"
    assert images.classes[3] == "thing3"
    np.testing.assert_array_equal(images.x_train, x[:50])
    np.testing.assert_array_equal(images.y_train, y[:50])
    order = fixed_test_order(10)
    np.testing.assert_array_equal(images.x_test, x[50:][order])
    np.testing.assert_array_equal(images.y_test, y[50:][order])


def test_a_cifar_batch_that_differs_from_the_published_one_is_never_unpickled(tmp_path, cifar):
    class Trap:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    for name, content in cifar[0].items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match=r"data\.root=.*corrupt"):
        load_images("cifar10", tmp_path)


def test_a_damaged_cifar_archive_is_named(tmp_path, cifar, offline):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(cifar[1][:-10])
    with pytest.raises(ValueError, match=r"cifar-10-python\.tar\.gz there is corrupt"):
        load_images("cifar10", tmp_path)


# SVHN: two MATLAB files


def test_svhn_is_read_from_its_two_files(tmp_path, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    scipy_io = pytest.importorskip("scipy.io")
    x = RNG.integers(0, 256, (32, 32, 3, 40), dtype=np.uint8)
    y = (np.arange(40) % 10 + 1).astype(np.uint8)  # 10 stands for the digit 0
    splits = {}
    for split, part in (("train", slice(0, 20)), ("test", slice(20, 40))):
        path = tmp_path / f"{split}_32x32.mat"
        scipy_io.savemat(path, {"X": x[..., part], "y": y[part, None]})
        splits[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(datasets.SVHN, "split_list", splits)
    images = load_images("svhn", tmp_path, download=False)
    np.testing.assert_array_equal(images.x_train, x[..., :20].transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(images.y_train, y[:20] % 10)
    assert images.classes[0] == "0"
    (tmp_path / "test_32x32.mat").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"test_32x32\.mat there is corrupt"):
        load_images("svhn", tmp_path, download=False)


# Absent files


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cifar10", "cifar-10-python.tar.gz"),
        ("cifar100", "cifar-100-python.tar.gz"),
        ("svhn", "train_32x32.mat"),
        ("fashion_mnist", "train-images-idx3-ubyte.gz"),
    ],
)
def test_a_failed_download_says_what_to_place_where(tmp_path, offline, capfd, name, file):
    pytest.importorskip("torchvision")
    with pytest.raises(ValueError) as caught:
        load_images(name, tmp_path / "data")
    message = str(caught.value)
    assert message.startswith(f"could not download {name} (")
    assert "no network in tests" in message
    assert f"place {file}" in message
    assert str(tmp_path / "data") in message
    assert "data=shapes10" in message
    assert "\n" not in message


def test_without_a_root_the_cache_folder_is_where_files_are_looked_for(own_cache):
    with pytest.raises(ValueError, match=f"{own_cache} does not hold fashion_mnist"):
        load_images("fashion_mnist", download=False)
    assert downloads.cache_folder() == own_cache


def test_a_root_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"data\.root=.*is a file"):
        load_images("fashion_mnist", tmp_path / "file")


# Limits, order, checksum, names


def test_a_limit_takes_as_many_of_each_class_as_of_any_other():
    y = RNG.permutation(np.repeat(np.arange(4), [100, 50, 30, 5]))
    before = set()
    for limit in (4, 5, 7, 20, 60, 100, 184, 185):
        kept = balanced_subset(y, limit, "data.train_limit")
        assert before < set(kept)  # a smaller limit's subset lies within a larger one's
        before = set(kept)
        counts = np.bincount(y[kept], minlength=4)
        assert len(np.unique(kept)) == limit == counts.sum()
        assert (np.diff(kept) > 0).all()
        unexhausted = counts[counts < [100, 50, 30, 5]]
        if len(unexhausted):
            assert unexhausted.max() - unexhausted.min() <= 1
            assert counts.max() - unexhausted.min() <= 1


@pytest.mark.parametrize(("limit", "rule"), [(101, "larger than the set"), (6, "at least 7")])
def test_a_limit_that_cannot_be_met_is_refused_by_key(limit, rule):
    with pytest.raises(ValueError, match=rf"data\.test_limit={limit} .*{rule}"):
        balanced_subset(np.arange(100) % 7, limit, "data.test_limit")


def test_the_test_order_is_a_fixed_mixture_of_the_classes():
    order = fixed_test_order(1000)
    np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    assert order[:4].tolist() == [829, 552, 912, 141]
    classes = np.repeat(np.arange(10), 100)[order]
    assert all(len(np.unique(part)) > 5 for part in classes.reshape(-1, 20))


def test_the_checksum_tells_content_and_order_but_not_place_or_title(tmp_path):
    x = RNG.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    y = np.arange(40) % 4

    def checksum(x, y, name, **options):
        path = tmp_path / name
        np.savez(path, x_train=x[:20], y_train=y[:20], x_test=x[20:], y_test=y[20:])
        return load_images("npz", path, **options).checksum

    first = checksum(x, y, "a.npz")
    assert first == checksum(x, y, "b.npz", title="the same")
    swapped = np.arange(40)
    swapped[[0, 4]] = 4, 0  # two of one class
    assert first != checksum(x[swapped], y, "c.npz")
    assert first != checksum(x, y, "d.npz", train_limit=19)
    changed = x.copy()
    changed[39, 7, 7, 2] ^= 1
    assert first != checksum(changed, y, "e.npz")


def test_an_unknown_name_is_refused_with_the_nearest_one():
    with pytest.raises(ValueError, match="data=cifer10 is unknown; did you mean cifar10"):
        load_images("cifer10")


@pytest.mark.parametrize(
    "values", [{"train_limit": 0}, {"test_limit": -1}, {"size": 7}], ids=lambda v: next(iter(v))
)
def test_numbers_below_their_least_are_refused_by_key(values):
    key, value = next(iter(values.items()))
    with pytest.raises(ValueError, match=rf"data\.{key}={value}"):
        load_images("shapes10", **values)


@pytest.mark.parametrize("name", ["npz", "imagefolder"])
def test_a_source_that_reads_files_needs_a_root(name):
    with pytest.raises(ValueError, match=rf"data={name} needs data\.root="):
        load_images(name)
