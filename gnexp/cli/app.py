"""The command word, Hydra, grids and exit codes.

Exit codes: 0 done (diverged and infeasible runs are results), 1 a run failed, 2 a mistake in what
was typed, 130 Ctrl-C. Heavy packages are imported by the commands, so that help answers at once.
"""

import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gnexp.config.torchrun import TorchrunEnv

HELP = (Path(__file__).parent / "help.txt").read_text()


def entry() -> None:
    """Run the command line of this process and exit with its code."""
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def main(argv: list[str] | None = None) -> int:
    """Run one command line, without the program's name, and return its exit code."""
    # PyTorch would import what packages register for other devices, and fail with any of them.
    os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    argv = list(sys.argv[1:] if argv is None else argv)
    if "COMP_LINE" in os.environ and argv[:1] == ["-sc"]:
        return _complete(os.environ["COMP_LINE"], argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"gnexp {version('gnexp')}")
        return 0
    from gnexp.config.torchrun import launched

    if place := launched():
        return _one_of_several(argv, place)
    return _run(argv)


def _one_of_several(argv: list[str], place: "TorchrunEnv") -> int:
    """Run as one of the processes of a launcher: the first plans, all train, one speaks."""
    if argv[0] != "train":
        return 0 if place.rank else _run(argv)
    if place.rank:
        _end_with_the_parent()
    from gnexp.runner.ranks import ranks_end, train_shares

    if place.rank:
        return train_shares(place)
    with ranks_end(place):
        return _run(argv)


def _end_with_the_parent() -> None:
    """End this rank with what started it; Ctrl-C is for rank 0, which ends the others."""
    from gnexp.config.torchrun import PARENT
    from gnexp.runner.process_pool import end_unless, end_with

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if parent := os.environ.get(PARENT):
        end_with(int(parent))
    else:  # a launcher, whose threads need not outlive what they start
        launcher = os.getppid()
        end_unless(lambda: os.getppid() == launcher)


def _run(argv: list[str]) -> int:
    try:
        return _answer(argv)
    except KeyboardInterrupt:  # also while the libraries are imported
        print("gnexp: stopped; the same command goes on where this one ended", file=sys.stderr)
        return 130


def _answer(argv: list[str]) -> int:
    from gnexp.cli import hydra_app
    from gnexp.config.schema import UsageError
    from gnexp.config.torchrun import launched, with_devices
    from gnexp.store.locks import LockLost

    try:
        if argv[0] == "train" and (place := launched()):
            argv = ["train", *with_devices(argv[1:], place)]
        return hydra_app.run(argv[0], argv[1:])
    except UsageError as mistake:
        for sentence in str(mistake).splitlines():
            print(f"gnexp: {sentence}", file=sys.stderr)
        return 2
    except LockLost as error:
        print(f"gnexp: {error}; the same command goes on where this one ended", file=sys.stderr)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:  # a folder that another user owns, a disk that is gone
        if error.filename is None:
            raise
        reason = error.strerror or type(error).__name__
        print(f"gnexp: {error.filename} cannot be read or written ({reason})", file=sys.stderr)
        return 2


def _complete(line: str, argv: list[str]) -> int:
    """Print what may follow on a half-typed line; argv is how Hydra's shell function asks."""
    from gnexp.cli import hydra_app
    from gnexp.config.schema import COMMANDS, UsageError

    words = line.split(maxsplit=2)
    if len(words) < 2 or (len(words) == 2 and not line[-1].isspace()):
        print("\n".join(COMMANDS))
        return 0
    # Hydra completes keys and must not see the command word.
    os.environ["COMP_LINE"] = " ".join(["gnexp", *words[2:]])
    # What is typed so far is often wrong, and a message would land in the middle of it.
    with contextlib.suppress(UsageError):
        hydra_app.run(words[1], argv)
    return 0
