"""Memory that the C library has free goes back to the system.

A worker takes chunks of megabytes apart and puts them together again. What it frees stays with the process, in holes,
of which it comes to have more over hours (docs/decisions/0033-no-objects-in-the-intake.md).
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from functools import cache
from typing import Final

_PAUSE: Final = 5.0  # seconds: what was given back has to be taken again, page by page


@cache
def keep_trimmed() -> None:
    """Begins to give back what is free, now and then, as long as the process lives; only the first call does anything.

    Not where the C library is another than GNU's.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        threading.Thread(target=_keep, args=(trim,), name="trim", daemon=True).start()


def _keep(trim: Callable[[int], object]) -> None:
    pause = threading.Event()
    while not pause.wait(_PAUSE):
        trim(0)  # others run meanwhile: ctypes lets go of Python's lock
