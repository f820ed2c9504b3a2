"""What processes do in the tests of `gnexp bench`; without torch they start quickly."""

import os
import time

from gnexp.runner.benchmark.timer import Window


def together(task, peers):
    """What two processes do in a test: the second one takes its time."""
    window = Window(0.0, lambda: None, peers)
    time.sleep(task)
    window.open()
    opened = time.monotonic()
    while not window.tick(1):
        time.sleep(task / 2)
    return opened, time.monotonic(), os.getpid()


def fails(task, peers):
    """What a process does that cannot measure."""
    raise ValueError("no room")
