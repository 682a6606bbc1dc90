"""numba, imported so that it also comes up in a Flink worker.

PyFlink's workers put a ``print`` of their own in the place of Python's; numba looks for Python's while it is imported.
"""

from __future__ import annotations

import builtins

_print = builtins.print
builtins.print = getattr(getattr(_print, "__self__", None), "_print", _print)
try:
    from numba import njit
finally:
    builtins.print = _print

__all__ = ["njit"]
