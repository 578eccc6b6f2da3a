"""Peak resident memory: of this process since a reset, and of a program run on its own.

Resident memory counts every page the process holds, so the interpreter and the libraries are in it. To compare two exported
files, run each in a process of its own with `subprocess_peak_bytes` and compare the two figures; both carry the same
constant part.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lighten.core.errors import UnfitError

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")

# A child's peak starts at its parent's resident size (Linux carries it over fork and exec), so a large parent would hide a
# small child. A small interpreter in between keeps the floor at its own ten-odd megabytes.
_WATCHER = """
import resource, subprocess, sys
result = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
if result.returncode:
    sys.stderr.buffer.write(result.stderr)
    sys.exit(1)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
"""


def reset_peak() -> bool:
    """Starts the peak anew at what is resident now. False where the system does not allow it; then the peak is since the
    start.
    """
    try:
        _CLEAR_REFS.write_text("5")  # 5 resets the high-water mark: proc(5)
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """Peak resident memory of this process in bytes, since `reset_peak` where that worked, else since the start.

    Raises UnfitError on systems that report neither /proc/self/status nor getrusage.
    """
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError as error:
        raise UnfitError("This system does not report peak memory.") from error
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _unit_bytes()


def subprocess_peak_bytes(argv: Sequence[str]) -> int:
    """Peak resident memory in bytes of a program run to its end, its output discarded. Linux and macOS.

    Raises UnfitError with the last line of its error output when the program cannot be run or fails.
    """
    result = subprocess.run([sys.executable, "-S", "-E", "-c", _WATCHER, *argv], capture_output=True, text=True, check=False)
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ["no error output"])[-1]
        raise UnfitError(f"Measuring the memory of {argv[0]!r} failed: {last}.")
    return int(result.stdout) * _unit_bytes()


def _unit_bytes() -> int:
    """The unit of ru_maxrss: kibibytes on Linux, bytes on macOS."""
    return 1 if sys.platform == "darwin" else 1024
