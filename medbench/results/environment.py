"""What a run was computed with: versions, commit, machine, memory."""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from medbench.catalog import packaged

PACKAGES = ("medbench", "torch", "torchvision", "transformers", "peft", "accelerate", "tokenizers", "numpy")


def environment(device: Any) -> dict[str, Any]:
    """Versions, git commit and machine; call it in the process that computes.

    Args:
        device: the `torch.device` in use.
    """
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return software() | {
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
    }


def software() -> dict[str, Any]:
    """Versions, git commit and platform: what of the environment is known without a device."""
    return {
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
        "git": git_state(packaged("tasks").parent),
        "platform": platform.system() + " " + platform.machine(),
    }


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and dirty flag of the checkout the code runs from (results not counted); None outside a checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(folder), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    if not (folder / ".git").exists():
        return None
    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.SubprocessError):
        return None


def command_words(arguments: Sequence[str]) -> str:
    """The command line in words, for the record: of a path only the last part is kept, of data and output folder none.

    Example:
        >>> command_words(["run", "--tasks", "/home/me/toy.yaml", "--data-root", "/data", "--out=x"])
        'medbench run --tasks toy.yaml --data-root DIR --out DIR'
    """
    words, hidden = ["medbench"], ("--data-root", "--out")
    remaining = iter(arguments)
    for word in remaining:
        name, sign, _ = word.partition("=")
        if name in hidden:
            words.append(f"{name} DIR")
            if not sign:
                next(remaining, None)
        else:
            words.append(shlex.quote(f"{name}=" * bool(sign and name.startswith("-")) + _without_folders(word)))
    return " ".join(words)


def _without_folders(word: str) -> str:
    value = word.partition("=")[2] if word.startswith("-") and "=" in word else word
    parts = value.split(",")
    return ",".join(Path(part).name if part.startswith(("/", "~", "..")) else part for part in parts)


def reset_peak_memory(device: Any) -> None:
    """Starts a new measurement of peak memory: one process may do several steps of several runs."""
    import torch

    with contextlib.suppress(OSError):  # only Linux has this file; elsewhere the peak is that of the process so far
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: Any) -> dict[str, int]:
    """Peak resident memory of this process since `reset_peak_memory`, in bytes; on CUDA also the device's."""
    import torch

    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        process = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    peak = {"process_bytes": process}
    if device.type == "cuda":
        peak["device_bytes"] = torch.cuda.max_memory_allocated(device)
    return peak


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
