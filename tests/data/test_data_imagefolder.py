"""Images from root/train/CLASS/* and root/test/CLASS/*, and their cache."""

import os
import warnings

import numpy as np
import pytest
from PIL import Image

from gnexp.data import imagefolder
from gnexp.data.sources import load_images
from gnexp.data.subsets import fixed_test_order


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gnexp" / "imagefolder"


def picture(number, size=(12, 12)):
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    """Classes ant, bee, cow with 4 training and 2 test images each."""
    folder = tmp_path / "zoo"
    number = 0
    for part, count in (("train", 4), ("test", 2)):
        for name in ("cow", "ant", "bee"):
            for i in range(count):
                save(folder / part / name / f"{i}.png", picture(number))
                number += 1
    return folder


@pytest.fixture
def decoded(monkeypatch):
    """The paths that were decoded."""
    paths = []
    original = imagefolder._decode_one

    def record(path, size):
        paths.append(path)
        return original(path, size)

    monkeypatch.setattr(imagefolder, "_decode_one", record)
    return paths


def test_images_come_in_the_order_of_class_and_file_names(root):
    images = load_images("imagefolder", root)
    assert images.classes == ("ant", "bee", "cow")
    assert images.title == "zoo"
    assert images.y_train.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for index, number in ((0, 4), (5, 9), (11, 3)):  # ant/0, bee/1, cow/3
        np.testing.assert_array_equal(images.x_train[index], picture(number).transpose(2, 0, 1))
    expected = np.stack([picture(n) for n in (14, 15, 16, 17, 12, 13)]).transpose(0, 3, 1, 2)
    order = fixed_test_order(6)
    np.testing.assert_array_equal(images.x_test, expected[order])
    np.testing.assert_array_equal(images.y_test, np.repeat([0, 1, 2], 2)[order])


def test_what_is_no_image_is_passed_over_and_counted(root):
    before = load_images("imagefolder", root)
    assert before.passed_over == ""
    ant = root / "train" / "ant"
    (ant / ".0.png").write_bytes(b"")
    (root / "train" / ".cache").mkdir()
    (root / "train" / "README").touch()
    for name in ("a.jfif", "b.JFIF", "c"):
        (ant / name).write_bytes((ant / "0.png").read_bytes())
    (root / "test" / "bee" / "broken.png").symlink_to("nowhere.png")
    save(ant / "2024" / "may" / "0.png", picture(50))
    save(ant / "2024" / "1.png", picture(51))
    (root / "train" / "bee" / "self").symlink_to(root / "train", target_is_directory=True)
    for _ in range(2):  # decoded, and from the cache
        after = load_images("imagefolder", root)
        assert after.checksum == before.checksum
        assert after.passed_over == (
            "5 files (2 .jfif, 1 .png, 2 without a suffix); 2 sub-folders of classes with 2 files"
        )


@pytest.mark.parametrize("name", [b"sea\ncow", b"caf\xe9"])
def test_a_class_folder_whose_name_no_table_can_hold_is_refused(root, decoded, name):
    for part in ("train", "test"):
        os.rename(root / part / "cow", os.path.join(os.fsencode(root / part), name))
    with pytest.raises(ValueError, match="rename it in train/ and test/") as refused:
        load_images("imagefolder", root)
    assert str(refused.value).isascii()
    assert "\n" not in str(refused.value)
    assert not decoded


def test_a_second_load_decodes_nothing(root, decoded, cache):
    first = load_images("imagefolder", root)
    assert len(decoded) == 18
    assert [path.suffix for path in cache.iterdir()] == [".npz"]
    decoded.clear()
    assert load_images("imagefolder", root).checksum == first.checksum
    assert not decoded


def test_only_the_images_within_the_limits_are_decoded(root, decoded):
    images = load_images("imagefolder", root, train_limit=6, test_limit=3)
    assert len(set(decoded)) == 9
    assert np.bincount(images.y_train).tolist() == [2, 2, 2]
    assert np.bincount(images.y_test).tolist() == [1, 1, 1]
    everything = load_images("imagefolder", root)
    pixels = {image.tobytes() for image in everything.x_train}
    assert all(image.tobytes() in pixels for image in images.x_train)


@pytest.mark.parametrize("change", ["content", "new file", "deleted file", "size key"])
def test_a_changed_folder_is_decoded_again(root, decoded, change):
    before = load_images("imagefolder", root)
    decoded.clear()
    victim, size = root / "train" / "ant" / "0.png", None
    if change == "content":
        save(victim, picture(99))
    elif change == "new file":
        save(victim.with_name("new.png"), picture(99))
    elif change == "deleted file":
        victim.unlink()
    else:
        size = 8
    after = load_images("imagefolder", root, size=size)
    assert decoded
    assert after.checksum != before.checksum


@pytest.mark.parametrize("damage", ["truncated", "emptied", "another array"])
def test_a_damaged_cache_is_noticed_and_rebuilt(root, cache, decoded, damage):
    before = load_images("imagefolder", root).checksum
    (file,) = cache.iterdir()
    content = file.read_bytes()
    if damage == "another array":  # a whole zip file whose checksum belongs to other pixels
        with np.load(file) as good:
            np.savez(file, x=good["x"] ^ 1, checksum=good["checksum"])
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"")
    for corrupt in (True, False):
        decoded.clear()
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            assert load_images("imagefolder", root).checksum == before
        told = [str(w.message) for w in warned if w.category is UserWarning]
        assert ["is corrupt: decoding" in each for each in told] == [True] * corrupt
        assert bool(decoded) == corrupt


def test_a_cache_that_cannot_be_written_costs_a_warning_only(root, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="cannot keep the decoded images"):
        assert len(load_images("imagefolder", root).x_train) == 12


def test_gray_palette_and_transparent_images_become_rgb(root):
    folder = root / "train" / "ant"
    gray = picture(4)[:, :, 0]
    save(folder / "0.png", gray)
    Image.fromarray(picture(5)).convert("RGBA").save(folder / "1.png")
    palette = Image.fromarray(picture(6)).convert("P")
    palette.save(folder / "2.png")
    images = load_images("imagefolder", root)
    np.testing.assert_array_equal(images.x_train[0], np.stack([gray] * 3))
    np.testing.assert_array_equal(images.x_train[1], picture(5).transpose(2, 0, 1))
    expected = np.asarray(palette.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(images.x_train[2], expected)


def test_with_a_size_the_shorter_side_is_resized_and_the_centre_kept(root):
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 200  # the central square
    save(root / "train" / "ant" / "0.png", wide)
    images = load_images("imagefolder", root, size=10)
    assert images.x_train.shape == (12, 3, 10, 10)
    assert (images.x_train[0, :, :, 1:9] == 200).all()  # but for the edges, which blend


def test_images_of_two_sizes_are_refused_with_the_way_out(root):
    save(root / "train" / "bee" / "2.png", picture(1, (14, 14)))
    with pytest.raises(ValueError, match=r"bee/2\.png is 14x14 .* 12x12.*data\.size=32"):
        load_images("imagefolder", root)
    assert load_images("imagefolder", root, size=12).x_train.shape == (12, 3, 12, 12)


@pytest.mark.parametrize("size", [(12, 13), (7, 7)])
def test_images_that_are_not_square_or_too_small_are_named(root, size):
    save(root / "train" / "ant" / "0.png", picture(1, size))
    with pytest.raises(ValueError, match=rf"ant/0\.png is {size[0]}x{size[1]}.*data\.size=32"):
        load_images("imagefolder", root)


def test_an_unreadable_or_truncated_image_is_named(root):
    victim = root / "test" / "cow" / "1.png"
    content = victim.read_bytes()
    for corrupt_file in (content[: len(content) // 2], b"", b"no image"):
        victim.write_bytes(corrupt_file)
        with pytest.raises(ValueError, match=r"cow/1\.png cannot be read"):
            load_images("imagefolder", root)


def test_an_image_of_16_bits_is_refused_rather_than_clipped(root):
    save(root / "train" / "ant" / "0.png", np.full((12, 12), 3000, np.uint16))
    with pytest.raises(ValueError, match=r"ant/0\.png has more than 8 bits"):
        load_images("imagefolder", root)


def remove(root, *parts):
    folder = root.joinpath(*parts)
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda root: remove(root), "does not exist"),
        (lambda root: (remove(root), root.touch()), "is not a folder"),
        (lambda root: (remove(root), root.mkdir()), "no folder train/"),
        (lambda root: remove(root, "test"), "no folder test/"),
        (lambda root: (remove(root, "train"), (root / "train").mkdir()), "and has 0"),
        (lambda root: [remove(root, "train", c) for c in ("ant", "bee")], "and has 1"),
        (lambda root: remove(root, "test", "ant"), "ant is in train/ only"),
        (lambda root: remove(root, "train", "ant"), "ant is in test/ only"),
        (lambda root: [os.remove(p) for p in (root / "test/bee").iterdir()], "test/bee holds no"),
    ],
)
def test_a_folder_of_another_form_is_refused_with_what_it_lacks(root, spoil, words):
    spoil(root)
    with pytest.raises(ValueError, match=rf"data\.root=.*{words}"):
        load_images("imagefolder", root)


@pytest.mark.parametrize("values", [{"train_limit": 13}, {"train_limit": 2}, {"test_limit": 7}])
def test_limits_that_cannot_be_met_are_refused_before_anything_is_decoded(root, decoded, values):
    key, value = next(iter(values.items()))
    with pytest.raises(ValueError, match=rf"data\.{key}={value} "):
        load_images("imagefolder", root, **values)
    assert not decoded


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_rotations_of_exif_are_counted_and_change_no_pixel(root, suffix):
    upright, turned = Image.Exif(), Image.Exif()
    upright[0x0112], turned[0x0112] = 1, 6
    for number, exif in enumerate((upright, turned, turned)):
        image = Image.fromarray(picture(70 + number))
        image.save(root / "train" / "ant" / f"{number}{suffix}", exif=exif)
    first = load_images("imagefolder", root)
    again = load_images("imagefolder", root)
    assert first.passed_over == again.passed_over == "the EXIF rotation of 2 images, not applied"
    for number in range(3):
        image = Image.fromarray(picture(70 + number))
        image.save(root / "train" / "ant" / f"{number}{suffix}")
    plain = load_images("imagefolder", root)
    assert (plain.checksum, plain.passed_over) == (first.checksum, "")


def test_a_broken_exif_block_keeps_no_image_from_being_read(root):
    image = Image.fromarray(picture(80))
    image.save(root / "train" / "ant" / "0.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert load_images("imagefolder", root).passed_over == ""
