"""A second call in one process, as in a notebook, goes by what the disk holds then."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gnexp.norms import user_code

SMALL = ("model=resnet8", "model.width=8", "batch=4", "epochs=1", "gradients=0", "workers=1")
FOLDER = (*SMALL, "data=imagefolder", "data.root=zoo")
DRAWN = (*SMALL, "data.train_limit=20", "data.test_limit=20")
NET = """
from torch import nn
{imports}

class {name}(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        width = {width}
        self.stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, x):
        return self.fc(self.norm(self.stem(x)).mean((2, 3)))
"""


@pytest.fixture
def zoo(workdir):
    for part, count in (("train", 4), ("test", 2)):
        for name in ("ant", "bee"):
            for i in range(count):
                save(Path("zoo", part, name, f"{i}.png"), seed=hash((part, name, i)) % 1000)
    return Path("zoo")


def save(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def results():
    files = sorted(Path("results/main").glob("*/result.json"), key=lambda p: p.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in files]


def test_images_that_change_places_and_keep_their_times_are_read_again(gnexp, zoo):
    assert gnexp("train", *FOLDER).code == 0
    one, other = zoo / "train" / "ant" / "0.png", zoo / "train" / "bee" / "0.png"
    for path in (one, other):  # of the same size, from one moment
        path.write_bytes(path.read_bytes().ljust(1000, b"\0"))
        os.utime(path, (1_700_000_000, 1_700_000_000))
    assert gnexp("train", *FOLDER).code == 0
    held = one.with_name("held")
    one.rename(held)
    other.rename(one)
    held.rename(other)
    assert gnexp("train", *FOLDER).code == 0
    assert len({result["data"]["checksum"] for result in results()}) == 2


def test_a_file_of_arrays_that_is_written_again_is_read_again(gnexp, workdir):
    rng = np.random.default_rng(0)
    for _ in range(2):
        parts = {
            f"x_{part}": rng.integers(0, 256, (8, 8, 8, 3), np.uint8) for part in ("train", "test")
        }
        np.savez("set.npz", **parts, y_train=np.arange(8) % 2, y_test=np.arange(8) % 2)
        assert gnexp("train", *SMALL, "data=npz", "data.root=set.npz").code == 0
    assert len({result["data"]["checksum"] for result in results()}) == 2


def test_a_model_whose_file_is_edited_trains_as_it_is_now(gnexp, workdir):
    words = [word for word in DRAWN if not word.startswith("model")]
    words.append("model._target_=edited_nets.Net")
    for layer in ("norm", "bn"):
        text = NET.format(imports="", name="Net", width=8).replace("self.norm", f"self.{layer}")
        Path("edited_nets.py").write_text(text)
        answer = gnexp("train", *words, "norm=gn")
        assert answer.code == 0, answer.err + answer.out
    assert [result["conversion"][0].split(":")[0] for result in results()] == ["norm", "bn"]


def test_a_file_that_the_model_imports_is_part_of_the_run_and_is_read_again(gnexp, workdir):
    text = NET.format(imports="import sizes\nWIDTH = sizes.WIDTH", name="Net", width="WIDTH")
    Path("sized_nets.py").write_text(text)
    words = [word for word in DRAWN if not word.startswith("model")]
    seen = []
    for width in (8, 16):
        Path("sizes.py").write_text(f"WIDTH = {width}\n")
        answer = gnexp("train", *words, "model._target_=sized_nets.Net")
        assert answer.code == 0, answer.err + answer.out
        seen.append(user_code.import_target("sized_nets.Net")(10).fc.in_features)
    assert seen == [8, 16]
    assert len(results()) == 2


def test_modules_of_a_package_are_followed_and_installed_ones_are_not(workdir):
    package = Path("followed")
    package.mkdir()
    (package / "__init__.py").write_text("from followed.nets import Net\n")
    (package / "nets.py").write_text("import json, torch\nfrom . import parts\nNet = parts.Net\n")
    (package / "parts.py").write_text(
        NET.format(imports="from .sizes import *", name="Net", width=8)
    )
    (package / "sizes.py").write_text("W = 8\n")
    (package / "other.py").write_text("nobody imports this\n")
    user_code.import_target("followed.Net")
    import followed

    names = [path.name for path in user_code.source_files(followed)]
    assert names == ["__init__.py", "nets.py", "parts.py", "sizes.py"]


def test_images_held_out_of_training_are_those_of_the_folder_as_it_is(gnexp, zoo):
    words = (*FOLDER, "data.validation=0.5")
    assert gnexp("train", *words).code == 0
    for name in ("ant", "bee"):
        for i in range(2):
            save(zoo / "train" / name / f"new{i}.png", seed=i)
    assert gnexp("train", *words).code == 0
    assert [result["data"]["test"] for result in results()] == [4, 6]
