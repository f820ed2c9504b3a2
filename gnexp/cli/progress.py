"""Show progress while runs train: one bar on a terminal, plain lines in a log."""

import sys
from typing import Any

from tqdm import tqdm

from gnexp.store.status import duration, image_cost

LAYOUT = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"


class Progress:
    """Shows events of tasks; `sizes` maps a run to (images to train, batch).

    A bar over all images by their cost, or in a log a line per epoch, of a grid per finished run.
    """

    def __init__(self, sizes: dict[str, tuple[int, int]], terminal: bool | None = None) -> None:
        self.costs = {run: image_cost(batch) for run, (_, batch) in sizes.items()}
        self.left: dict[str, float] = {run: images for run, (images, _) in sizes.items()}
        self.done: dict[tuple[str, int], float] = {}  # images, by run and seed
        self.many = len(sizes) > 1
        self.runs = len(sizes)
        self.finished = self.failed = 0
        terminal = sys.stderr.isatty() if terminal is None else terminal
        self.total = sum(images * self.costs[run] for run, images in self.left.items())
        self.bar = tqdm(
            total=self.total, bar_format=LAYOUT, disable=not terminal, leave=False, smoothing=0.05
        )
        self.bar.set_description_str(f"0/{self.runs} runs" if self.many else "training")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.close()

    def event(self, event: dict[str, Any]) -> None:
        """Take in what a task emitted: a note, a tick within an epoch, or a finished epoch."""
        if event["kind"] == "note":
            self.print_line(event["text"])
        elif event["kind"] == "tick":
            for key in event["replicas"]:
                self._advance(*key, self.done.get(key, 0) + event["examples"])
        elif event["kind"] == "epoch":
            self._advance(event["run"], event["seed"], event["examples_seen"])
            self._show(event)

    def run_done(self, run: str, line: str, failed: bool) -> None:
        """Count an ended run and print its line."""
        self.finished += 1
        # What another call trained, or an earlier one, was not reported image by image.
        self.bar.update(max(0.0, self.left.pop(run, 0)) * self.costs[run])
        self.failed += failed
        if self.many:
            trouble = f", {self.failed} failed" if self.failed else ""
            self.bar.set_description_str(f"{self.finished}/{self.runs} runs{trouble}")
            self.print_line(f"[{self.finished}/{self.runs}] {line}")

    def print_line(self, line: str) -> None:
        """Print a line above the bar."""
        if self.bar.disable:
            print(line, flush=True)
        else:
            self.bar.write(line, file=sys.stdout)

    def _advance(self, run: str, seed: int, images: float) -> None:
        """Move the bar to where a training has seen so many images; it never goes back."""
        more = max(0.0, images - self.done.get((run, seed), 0))
        self.done[run, seed] = self.done.get((run, seed), 0) + more
        self.left[run] = self.left.get(run, 0) - more
        self.bar.update(more * self.costs[run])

    def _show(self, epoch: dict[str, Any]) -> None:
        text = (
            f"loss {epoch['train_loss']:.3f}, training {100 * epoch['train_acc']:.1f} %,"
            f" {epoch.get('on', 'test')} {100 * epoch['test_acc']:.1f} %"
        )
        self.bar.set_postfix_str(text if not self.many else f"{epoch['run']}: {text}")
        if self.bar.disable and not self.many:
            took = duration(epoch["time_s"])
            self.print_line(f"seed {epoch['seed']}, epoch {epoch['epoch']}: {text}, {took}")
