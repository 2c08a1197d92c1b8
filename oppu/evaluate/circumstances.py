"""What a result was made with: versions of the packages, and the machine."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from oppu import __version__


def versions() -> dict[str, str]:
    """Of oppu, Python and the packages that decide numbers."""
    packages = {package: version(package) for package in ("torch", "transformers", "peft")}
    return {"oppu": __version__, "python": platform.python_version(), **packages}


def machine() -> dict[str, str | int]:
    """Processor, cores that this process may use, threads of torch, memory, and the accelerator where there is one."""
    import torch

    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_mib": _memory_mib(),
        "accelerator": accelerator,
    }


def kib_of(status: str, key: str) -> int | None:
    """A line of a file under /proc (`VmHWM:  1234 kB`); None where it is missing."""
    found: Mapping[str, str] = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(found[key].split()[0]) if key in found else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _memory_mib() -> int:
    try:
        return (kib_of(Path("/proc/meminfo").read_text(encoding="utf-8"), "MemTotal") or 0) // 1024
    except OSError:
        return 0
