"""Where a result came from: commit, versions and hardware, as texts that every stage writes beside its output."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

PACKAGES: Final = ("numpy", "zarr", "torch", "transformers", "datasets", "tokenizers")


def provenance() -> dict[str, str]:
    """Commit of this code (`+dirty` where files differ from it), versions of what it stands on, and the machine."""
    found = {
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _commit() -> str:
    """The checkout that this file is in, if it is in one."""
    root = Path(__file__).resolve().parent.parent
    try:
        run = [
            subprocess.run(
                ["git", "-C", str(root), *what], capture_output=True, text=True, timeout=10, check=True
            ).stdout
            for what in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return run[0].strip() + ("+dirty" if run[1].strip() else "")
