"""What is free in the C library goes back to the system, without anybody asking for it."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Final

import pytest

# Ten thousand blocks, each too small to be mapped by itself, of which one in fifty stays: 200 MB with holes.
_HOLES: Final = """
import ctypes, sys
from pathlib import Path
from unittest import mock
from udfs import memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [libc.malloc(20_000) for _ in range(10_000)]
for block in blocks:
    ctypes.memset(block, 1, 20_000)
for at, block in enumerate(blocks):
    if at % 50:
        libc.free(block)
def told():
    print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096, flush=True)
told()
with mock.patch.object(memory, "_PAUSE", 0.05):
    memory.keep_trimmed()
    memory.keep_trimmed()
    for _ in sys.stdin:
        told()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's C library, and /proc")
def test_holes_are_given_back() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _HOLES], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as of:
        assert of.stdin is not None and of.stdout is not None
        before = int(of.stdout.readline())
        after = before
        for _ in range(600):
            if after < before - 150_000_000:
                break
            time.sleep(0.05)
            of.stdin.write("\n")
            of.stdin.flush()
            after = int(of.stdout.readline())
        of.stdin.close()
    assert after < before - 150_000_000, f"{before:,} bytes before, {after:,} after half a minute"
