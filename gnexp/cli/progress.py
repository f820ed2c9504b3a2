"""Show progress while runs train: one bar on a terminal, plain lines in a log."""

import sys
import time
from typing import Any

from tqdm import tqdm

from gnexp.store.status import duration, image_cost


class Progress:
    """Shows the events of running tasks; `sizes` maps a run to (images to train, batch).

    On a terminal one bar over all images, weighted by their cost; elsewhere a line per epoch of a
    single run, or per finished run of a grid.
    """

    def __init__(self, sizes: dict[str, tuple[int, int]], terminal: bool | None = None) -> None:
        self.costs = {name: image_cost(batch) for name, (_, batch) in sizes.items()}
        self.total = sum(images * self.costs[name] for name, (images, _) in sizes.items())
        self.left = {name: images * self.costs[name] for name, (images, _) in sizes.items()}
        self.many = len(sizes) > 1
        self.runs = len(sizes)
        self.finished = self.failed = 0
        self.uncounted: dict[tuple[str, int], float] = {}
        self.started = time.monotonic()
        terminal = sys.stderr.isatty() if terminal is None else terminal
        layout = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        self.bar = tqdm(
            total=self.total, bar_format=layout, disable=not terminal, leave=False, smoothing=0.05
        )
        self.bar.set_description_str(f"0/{self.runs} runs" if self.many else "training")

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc: object) -> None:
        self.bar.close()

    def event(self, event: dict[str, Any]) -> None:
        """Take in what a task emitted: a tick within an epoch, or a finished epoch."""
        if event["kind"] == "tick":
            self._tick(event)
        elif event["kind"] == "note":
            self.print_line(event["text"])
        elif event["kind"] == "epoch":
            self._epoch(event)

    def run_done(self, run: str, line: str, failed: bool) -> None:
        """Count an ended run and print its line."""
        self.finished += 1
        # What another call trained, or an earlier one, was not reported image by image.
        self.bar.update(max(0.0, self.left.pop(run, 0)))
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

    def _tick(self, event: dict[str, Any]) -> None:
        for run, seed in event["replicas"]:
            cost = event["examples"] * self.costs[run]
            self.uncounted[run, seed] = self.uncounted.get((run, seed), 0) + cost
            self._advance(run, cost)

    def _advance(self, run: str, cost: float) -> None:
        self.left[run] = self.left.get(run, 0) - cost
        self.bar.update(cost)

    def _epoch(self, event: dict[str, Any]) -> None:
        # The images after the last tick of the epoch were not reported one by one.
        key = event["run"], event["seed"]
        per_epoch = event["examples_seen"] / event["epoch"] * self.costs[event["run"]]
        self._advance(event["run"], max(0.0, per_epoch - self.uncounted.pop(key, 0)))
        text = (
            f"loss {event['train_loss']:.3f}, training {100 * event['train_acc']:.1f} %,"
            f" {event.get('on', 'test')} {100 * event['test_acc']:.1f} %"
        )
        self.bar.set_postfix_str(text if not self.many else f"{event['run']}: {text}")
        if self.bar.disable and not self.many:
            self.print_line(
                f"seed {event['seed']}, epoch {event['epoch']}: {text}, {duration(event['time_s'])}"
            )
