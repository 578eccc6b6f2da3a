"""Peak memory of processes that allocate a known amount."""

import sys

import pytest

from lighten.core.errors import UnfitError
from lighten.evaluate.memory import peak_bytes, reset_peak, subprocess_peak_bytes

MIB = 2**20


def test_the_peak_of_this_process_grows_with_an_allocation_and_stays():
    reset_peak()
    before = peak_bytes()
    held = bytearray(64 * MIB)
    held[::4096] = b"x" * len(held[::4096])
    del held
    assert 60 * MIB < peak_bytes() - before < 90 * MIB


@pytest.mark.skipif(not reset_peak(), reason="this system does not let a process reset its peak")
def test_a_reset_forgets_an_earlier_peak():
    held = bytearray(64 * MIB)
    held[::4096] = b"x" * len(held[::4096])
    high = peak_bytes()
    del held
    reset_peak()
    assert peak_bytes() < high - 50 * MIB


def test_the_peak_of_a_program_is_its_own_and_not_this_processs():
    """This process holds 200 MiB more than the child; a bare interpreter needs about 10."""
    held = bytearray(200 * MIB)
    held[::4096] = b"x" * len(held[::4096])
    small = subprocess_peak_bytes([sys.executable, "-S", "-c", "pass"])
    large = subprocess_peak_bytes([sys.executable, "-S", "-c", f"print(len(b'x' * {100 * MIB}))"])
    assert small < 60 * MIB
    assert 95 * MIB < large - small < 110 * MIB


def test_a_program_that_fails_or_does_not_exist_is_named_with_its_last_line():
    with pytest.raises(UnfitError, match="no such luck"):
        subprocess_peak_bytes([sys.executable, "-c", "raise SystemExit('no such luck')"])
    with pytest.raises(UnfitError, match="/nowhere/at-all"):
        subprocess_peak_bytes(["/nowhere/at-all"])
