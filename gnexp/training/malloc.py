"""Let the C library keep the memory that tensors on a CPU free."""

import ctypes
import functools

# Parameters of glibc's mallopt(3), and values that its manual page allows.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_KEEP, _AHEAD = 1 << 30, 1 << 26


@functools.cache
def keep_malloc_arena() -> bool:
    """Let this process keep what its tensors free; return whether the C library supports it.

    By default glibc gives large blocks back to the system at once and takes fresh, zeroed pages for
    the next tensor: with several replicas in a step, training GN on one thread was 10 to 20 %
    slower so (ResNet-20, batch 2 to 64, see results/LOG.md). Elsewhere nothing happens.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    settings = ((_MMAP_THRESHOLD, _KEEP), (_TRIM_THRESHOLD, _KEEP), (_TOP_PAD, _AHEAD))
    done = [mallopt(ctypes.c_int(key), ctypes.c_int(value)) for key, value in settings]
    return all(done)
