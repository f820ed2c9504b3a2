"""With what and where a run was made."""

import functools
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import torch


@functools.cache
def version() -> str:
    """Return the installed version of gnexp, or "unknown" for a bare checkout."""
    try:
        return metadata.version("gnexp")
    except metadata.PackageNotFoundError:
        return "unknown"


@functools.cache
def _git() -> tuple[str | None, bool | None]:
    """Return (commit, dirty) of the checkout this package runs from, (None, None) without one."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None, None

    def ask(*words: str) -> str:
        done = subprocess.run(
            ["git", "--no-optional-locks", "-C", str(root), *words],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
        return done.stdout.strip()

    try:
        changed = ask("status", "--porcelain", "--untracked-files=no", "--", "gnexp", "configs")
        return ask("rev-parse", "HEAD"), bool(changed)
    except (OSError, subprocess.SubprocessError):
        return None, None


def now() -> str:
    """Return the time, in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance(
    device: torch.device, command: str, started: str, code: dict[str, str] | None = None
) -> dict[str, object]:
    """Return what a run's provenance.json holds; only `command` may name paths, as typed.

    started: when the call began, see `now`. code: digests of the user's own, by "norm", "model".
    """
    commit, dirty = _git()
    cuda = device.type == "cuda"
    return {
        "commit": commit,
        "dirty": dirty,
        "gnexp": version(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": metadata.version("numpy"),
        "device": torch.cuda.get_device_name(device) if cuda else _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "determinism": "not guaranteed on CUDA" if cuda else "same thread count, same digits",
        "platform": f"{sys.platform} {platform.machine()}",
        "started": started,
        "command": command,
        **({"code": code} if code else {}),
    }


@functools.cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
