"""Reads all of a map in Flink's state, and writes many entries of it, batch by batch.

``MapState.items()`` asks the JVM for a batch of entries, takes it apart one value at a time, and hands over one entry
at a time. Here a kernel takes a batch apart, and the JVM makes the next one meanwhile. What is asked and answered is
PyFlink's own: see ``CachingMapStateHandler._iterate_raw`` in ``pyflink/fn_execution/state_impl.py``. Nothing of what
is read stays in PyFlink's caches, so what is written and read by PyFlink afterwards is as if there had been no reading.

``MapState.put()`` keeps what is written until the bundle ends, then encodes it one value at a time into one message,
however long. Here entries go at once, some megabytes a message, so that memory is used again.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from typing import Any, Final

import numpy as np

from udfs.pieces import Pieces, side_by_side

PYFLINK: Final = "2.3.0"  # whose parts that are not public are used here
_ITEMS: Final = b"\x01\x00"  # to iterate over names and values; the number of the iterator follows, empty for a new one
_PUT: Final = b"\x02"
_MESSAGE: Final = 4_000_000  # bytes, about


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
    _check()
    yield from map(taken_apart, _batches(state, background))


def put(state: Any, entries: Iterable[tuple[Pieces, Pieces]]) -> None:
    """Puts entries into a map of texts to bytes, as ``MapState.put()`` does, and waits until the JVM has them.

    Parameters
    ----------
    state
        As for :func:`items`.
    entries
        Names, in UTF-8, and their values.

    Raises
    ------
    RuntimeError
        If this is another PyFlink, or the JVM could not take them.
    ValueError
        If there are not as many values as names.
    """
    _check()
    of = state.get_internal_state()
    of.commit()  # what was written before, and not yet sent
    handler = of._map_state_handler
    handler.clear_read_cache(of._state_key)
    sent = []
    for names, values in entries:
        count = max(1, len(values) * _MESSAGE // max(int(values.bounds[-1] - values.bounds[0]), 1))
        for at in range(0, max(len(names), len(values)), count):
            message = put_together(names[at : at + count], values[at : at + count])
            sent.append(handler._underlying.append_raw(of._state_key, message))
    for one in sent:
        one.get()


def put_together(names: Pieces, values: Pieces) -> bytes:
    """Entries to be put, as the JVM takes them: with each part comes how long it is, and how long that is with it.

    >>> put_together(Pieces.of([b"a"]), Pieces.of([b"row"]))
    b'\\x00\\x00\\x00\\x01\\x02\\x00\\x00\\x00\\x05\\x00\\x00\\x00\\x01a\\x00\\x00\\x00\\x07\\x00\\x00\\x00\\x03row'
    """
    entries = side_by_side([_PUT, _sizes(names), names, _sizes(values), values], len(names))
    return b"".join((struct.pack(">I", len(names)), entries.data.data))


def _sizes(pieces: Pieces) -> Pieces:
    lengths = pieces.lengths
    return Pieces.of_rows(np.stack([lengths + 4, lengths], axis=1).astype(">u4"))


_installed = functools.cache(functools.partial(version, "apache-flink"))


def _check() -> None:
    if _installed() != PYFLINK:
        raise RuntimeError(
            f"rows are kept in Flink's state as PyFlink {PYFLINK} does it, and this is {_installed()}: "
            f"install apache-flink=={PYFLINK}"
        )


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
