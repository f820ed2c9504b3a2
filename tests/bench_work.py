"""What processes do in the tests of `gnexp bench`; without torch they start quickly."""

import os
import time

from gnexp.runner.benchmark.timer import time_updates


def together(task, peers):
    """What two processes do in a test: the second one takes its time."""
    updates = []

    def train(tick):
        while True:
            time.sleep(task / 4)
            updates.append(time.monotonic())
            tick(1)

    timing = time_updates(train, 0.0, peers, lambda: None)
    return timing, updates, os.getpid()


def fails(task, peers):
    """What a process does that cannot measure, while another one waits for it."""
    if task:
        raise ValueError("no room")
    peers.barrier.wait()
