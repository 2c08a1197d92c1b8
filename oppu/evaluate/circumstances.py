"""What a result was made with: versions of the packages, and the machine."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

import psutil

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
        "memory_mib": psutil.virtual_memory().total >> 20,
        "accelerator": accelerator,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
