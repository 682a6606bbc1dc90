"""Reads all of a map in Flink's state, batch by batch.

``MapState.items()`` asks the JVM for a batch of entries, takes it apart one value at a time, and hands over one entry
at a time. Here a kernel takes a batch apart, and the JVM makes the next one meanwhile. What is asked and answered is
PyFlink's own: see ``CachingMapStateHandler._iterate_raw`` in ``pyflink/fn_execution/state_impl.py``. Nothing of what
is read stays in PyFlink's caches, so what is written and read by PyFlink afterwards is as if there had been no reading.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, Final

import numpy as np

PYFLINK: Final = "2.3.0"  # whose parts that are not public are used here
_ITEMS: Final = b"\x01\x00"  # to iterate over names and values; the number of the iterator follows, empty for a new one


def items(state: Any, background: ThreadPoolExecutor) -> Iterator[tuple[list[str], list[bytes]]]:
    """The names and the values of a map of texts to bytes, batch by batch; none of them is empty.

    The map must not be written, nor the state's key be changed, before all have been read.

    Parameters
    ----------
    state
        A ``MapState`` of PyFlink, of ``Types.STRING()`` and bytes.
    background
        Where the next batch is waited for.

    Raises
    ------
    RuntimeError
        If this is another PyFlink.
    ValueError
        If what the JVM answers is not such a map.
    """
    if version("apache-flink") != PYFLINK:
        raise RuntimeError(
            f"rows are read from Flink's state as PyFlink {PYFLINK} does, and this is {version('apache-flink')}: "
            f"install apache-flink=={PYFLINK}"
        )
    yield from map(taken_apart, _batches(state, background))


def taken_apart(batch: bytes) -> tuple[list[str], list[bytes]]:
    """The names and the values in a batch, as the JVM gives it.

    >>> taken_apart(b"\\0\\0\\0\\6user:a\\1\\0\\0\\0\\3row")
    (['user:a'], [b'row'])
    """
    from udfs import kernels  # here, as numba takes half a second to import

    starts, ends, froms, tos = kernels.entries(np.frombuffer(batch, dtype=np.uint8)).T.tolist()
    names = [batch[start:end].decode() for start, end in zip(starts, ends, strict=True)]
    return names, [batch[start:end] for start, end in zip(froms, tos, strict=True)]


def _batches(state: Any, background: ThreadPoolExecutor) -> Iterator[bytes]:
    of = state.get_internal_state()
    of.commit()  # what was written and not yet sent
    connection = of._map_state_handler._underlying
    bundle = connection._context.process_instruction_id  # kept by thread

    def ask(iterator: bytes) -> tuple[bytes, bytes]:
        with connection.process_instruction_id(bundle):
            batch, rest = connection.get_raw(of._state_key, _ITEMS + len(iterator).to_bytes(4, "big") + iterator)
        return batch, rest

    asked = background.submit(ask, b"")
    while True:
        batch, iterator = asked.result()
        if iterator:
            asked = background.submit(ask, iterator)
        if batch:
            yield batch
        if not iterator:
            return
