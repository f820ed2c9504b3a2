"""The command word, Hydra, grids and exit codes.

Exit codes: 0 done (diverged and infeasible runs are results), 1 a run failed, 2 a mistake in what
was typed, 130 Ctrl-C. Heavy packages are imported by the commands, so that help answers at once.
"""

import contextlib
import os
import signal
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gnexp.config.torchrun import TorchrunEnv

HELP = """\
gnexp: which normalization should I train with when only a few images fit in a batch?

usage: gnexp COMMAND [key=value ...] [Hydra flags]

commands
  train     train one run, or with --multirun (-m) a grid of runs; a grid ends with its report
  report    build tables, figures and the page from what a study holds, finished or not
  check     every claim of the article, measured on any norm
  measure   run instruments (gradients, shift, batches, classes, cost) on stored runs
  status    what of a study is complete, running, failed or missing, and the time left
  verify    whether the files of a study are those that were written, and what brings others back
  export    a study as one file to share, NAME.zip, which report, status and verify read
  bench     throughput and memory per norm and batch size, beside a plain PyTorch loop

examples
  gnexp train norm=gn groups=32 batch=2
  gnexp train --multirun norm=bn,gn,ln,in batch=1,2,4,8,16,32,64
  gnexp train experiment=smoke
  gnexp train experiment=lr_fair
  gnexp report study=smoke
  gnexp report study=[smoke,lr_fair]
  gnexp check norm=gn groups=32
  gnexp check --multirun norm=bn,gn,ln,in,none

keys of train (all of them: gnexp train --cfg job)
  norm       bn gn ln in ln2d rms dyt frn evonorm_b0 evonorm_s0 brn gbn syncbn switchable
             online bn_frozen gn_ws none none_fixup; norm._target_=my_pkg.MyNorm for your own,
             or the name of an installed plug-in (entry points gnexp.norms)
  groups     groups of gn (8), or channels_per_group=; also of gn_ws and evonorm_s0
  batch      images that share one forward pass (32), on each of devices=N
  update_batch   images per optimizer update (batch)
  seeds      how many seeds (1), or which: seeds=[5,6]
  epochs, lr, model, data, data.root, study, out, device, precision
  privacy    dpsgd: differentially private, privacy.epsilon=8 (pip install 'gnexp[dp]')
  lr=tuned   each cell's rate, chosen on images held out of training; data.validation= holds out
  updates    as many optimizer updates for every batch size, in place of epochs
  experiment     preset grids: smoke, batch_sweep, group_sweep, zero_gamma, lr_fair, two_batches,
                 all_norms, fine_tune

a command that was interrupted, or ended early, is simply called again: it trains what is missing
  retry=failed   try again what failed (or infeasible, diverged); force=true trains all again

a study from elsewhere is read, but code that it names (norm._target_, model._target_) is not called
  trust=true     gnexp measure says which code it is, and calls it

A command's own help: gnexp train --help
"""


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
    from gnexp.runner.ranks import launched_ranks_end, train_shares

    if place.rank:
        return train_shares(place)
    with launched_ranks_end():
        return _run(argv)


def _end_with_the_parent() -> None:
    """End this rank with the process that started it; torch, which takes long, is to come.

    Ctrl-C is for rank 0, which ends the others.
    """
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
