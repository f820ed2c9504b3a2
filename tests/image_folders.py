"""Folders of random images, as a user would have."""

import numpy as np
from PIL import Image


def image_folder(root, side=32, classes=("cat", "dog"), count=4):
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.png")
