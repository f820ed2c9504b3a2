"""Train each model of a list for one update under each norm, and print a table of what happened.

    python scripts/model_zoo.py LIST [norm ...]

A line of LIST is `torchvision NAME` or `timm NAME`, then, if needed, `model.options={...}`. Images
are noise of 128 pixels a side, or of the size that the library names for the model where it does
not take those; the batch is 2 (norms: bn gn).
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import gnexp

CLASSES, BATCH, SIDE = 10, 2, 128


def sizes_of(library: str, name: str) -> list[int]:
    """Return the pixels of a side to be tried: few, then as many as the library names."""
    if library == "torchvision":
        return [SIDE, 299 if name == "inception_v3" else 224]
    import timm

    return [SIDE, timm.get_pretrained_cfg(name).input_size[-1]]


def images(folder: Path, size: int) -> Path:
    """Return a file of noise: two training images of each class and one test image."""
    path = folder / f"{size}.npz"
    if not path.exists():
        draw = np.random.default_rng(0)
        y_train = np.repeat(np.arange(CLASSES), 2)
        shape = (len(y_train) + 1, size, size, 3)
        x = draw.integers(0, 256, shape, dtype=np.uint8)
        np.savez(path, x_train=x[1:], y_train=y_train, x_test=x[:1], y_test=y_train[:1])
    return path


def trained(
    folder: Path, library: str, name: str, size: int, norm: str, words: list[str]
) -> tuple[str, ...]:
    """Return what became of one model under one norm: layers replaced, layers left, outcome."""
    root = images(folder, size)
    study = f"{library}-{name}-{norm}"
    asked = [f"model={library}", f"model.name={name}", f"norm={norm}", f"batch={BATCH}", *words]
    asked += ["data=npz", f"data.root={root}", "updates=1", "gradients=0", "warmup=0"]
    asked += ["groups_fallback=gcd"] if norm == "gn" else []
    try:
        (row,) = gnexp.train([*asked, f"out={folder}", f"study={study}"]).to_dict("records")
    except gnexp.Mistake as error:
        return "", "", f"refused: {error}"
    if row["status"] != "complete":
        return "", "", f"{row['status']}: {row['why']}"
    result = json.loads((folder / study / row["run"] / "result.json").read_text())
    lines = result["conversion"]
    counts = (sum(mark in line for line in lines) for mark in (" -> ", " left, since"))
    return *map(str, counts), "trains"


def main(path: str, *norms: str) -> None:
    """Print the table, a line as soon as it is known."""
    print("| model | images | norm | replaced | left | outcome | s |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for line in Path(path).read_text().splitlines():
            if not line.strip() or line.startswith("#"):
                continue
            library, name, *rest = line.split()
            words = [word for word in rest if "=" in word]
            for norm in norms or ("bn", "gn"):
                start = time.monotonic()
                for size in sizes_of(library, name):
                    told = trained(Path(folder), library, name, size, norm, words)
                    if "does not take images" not in told[-1]:
                        break
                shown = " ".join([library, name, *words])
                cells = (shown, str(size), norm, *told, f"{time.monotonic() - start:.0f}")
                print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
