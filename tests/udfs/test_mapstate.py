"""A map in Flink's state, read batch by batch, against PyFlink's own reading of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import Any

import pytest
from apache_beam.portability.api import beam_fn_api_pb2
from apache_beam.runners.worker.sdk_worker import GlobalCachingStateHandler, GrpcStateHandler
from apache_beam.runners.worker.statecache import StateCache
from hypothesis import given
from hypothesis import strategies as st
from pyflink.common import Types
from pyflink.fn_execution.coders import from_type_info
from pyflink.fn_execution.state_impl import RemoteKeyedStateBackend

from udfs import mapstate
from udfs.mapstate import items, put, put_together, taken_apart
from udfs.pieces import Pieces

# Names as ids are: of one byte, of two, of four; empty ones, too.
MAPS = st.dictionaries(st.text(st.sampled_from("ab:é😀"), max_size=4), st.binary(max_size=5), max_size=12)


class Jvm:
    """Flink's side of the connection: keeps maps, and answers as ``AbstractStateReader`` and the like do."""

    def __init__(self, batch_size: int) -> None:
        self.maps: dict[bytes, dict[bytes, bytes]] = {}
        self._batch_size = batch_size
        self._iterators: dict[bytes, list[tuple[bytes, bytes]]] = {}

    def State(self, requests: Iterator[Any]) -> Iterator[Any]:  # noqa: N802
        for request in requests:
            of = self.maps.setdefault(request.state_key.SerializeToString(), {})
            response = beam_fn_api_pb2.StateResponse(id=request.id)
            if request.HasField("append"):
                self._write(of, request.append.data)
            else:
                data, rest = self._read(of, request.get.continuation_token)
                response.get.data, response.get.continuation_token = data, rest
            yield response

    def _write(self, of: dict[bytes, bytes], data: bytes) -> None:
        at = 4
        for _ in range(int.from_bytes(data[:4], "big")):
            flag, at = data[at], at + 1
            name, at = self._text(data, at)
            if flag == 2:
                of[name], at = self._text(data, at)
            else:
                del of[name]

    def _text(self, data: bytes, at: int) -> tuple[bytes, int]:
        (length,) = struct.unpack_from(">i", data, at)
        return data[at + 4 : at + 4 + length], at + 4 + length

    def _read(self, of: dict[bytes, bytes], asked: bytes) -> tuple[bytes, bytes]:
        if asked[0] == 0:
            value = of.get(asked[1:])
            return (b"\x02", b"") if value is None else (b"\x00" + value, b"")
        token = asked[6:]
        entries = self._iterators.pop(token) if token else list(of.items())
        now, later = entries[: self._batch_size], entries[self._batch_size :]
        token = token or b"iterator %d" % len(self._iterators)
        if later:
            self._iterators[token] = later
        return b"".join(name + b"\x01" + value for name, value in now), token if later else b""


@contextmanager
def states(jvm: Jvm) -> Iterator[tuple[Any, Any]]:
    """Two handles of one map, as two tasks have them that come one after the other; a bundle is open."""
    grpc = GrpcStateHandler(jvm)
    handler = GlobalCachingStateHandler(StateCache(1_000_000), grpc)
    name, value = from_type_info(Types.STRING()), from_type_info(Types.PRIMITIVE_ARRAY(Types.BYTE()))
    handles = []
    for _ in range(2):
        backend = RemoteKeyedStateBackend(handler, name, None, 10, 1, 1_000)
        backend.set_current_key("shard")
        handles.append(backend.get_map_state("rows", name, value))
    with handler.process_instruction_id("bundle", []):
        yield handles[0], handles[1]
    grpc.done()


def pieces(entries: dict[str, bytes]) -> tuple[Pieces, Pieces]:
    return Pieces.of_texts(list(entries)), Pieces.of(list(entries.values()))


def read(state: Any) -> dict[str, bytes]:
    with ThreadPoolExecutor(1) as background:
        batches = list(items(state, background))
    assert all(names for names, _ in batches)
    names, values = (list(chain.from_iterable(part)) for part in zip(*batches, strict=True)) if batches else ([], [])
    return dict(zip(names, values, strict=True))


@given(stored=MAPS, batch_size=st.integers(1, 5))
def test_it_is_what_pyflink_reads(stored: dict[str, bytes], batch_size: int) -> None:
    with states(Jvm(batch_size)) as (before, state):
        for name, value in stored.items():
            before.put(name, value)
        before.get_internal_state().commit()
        assert read(state) == stored == dict(state.items())


@given(first=MAPS, then=MAPS)
def test_what_is_written_after_it_is_what_counts(first: dict[str, bytes], then: dict[str, bytes]) -> None:
    with states(Jvm(2)) as (before, state):
        for name, value in first.items():
            before.put(name, value)
        before.get_internal_state().commit()
        read(state)
        gone = list(first)[::2]
        for name in gone:
            state.remove(name)
        for name, value in then.items():
            state.put(name, value)
        expected = {name: value for name, value in first.items() if name not in gone} | then
        assert {name: state.get(name) for name in {*first, *then}} == {**dict.fromkeys(gone), **expected}
        assert read(state) == expected == dict(state.items())  # also what had not been sent


@given(first=MAPS, then=MAPS, last=MAPS, message=st.integers(1, 300))
def test_what_is_put_at_once_is_what_pyflink_puts(
    first: dict[str, bytes], then: dict[str, bytes], last: dict[str, bytes], message: int
) -> None:
    with pytest.MonkeyPatch.context() as patch, states(Jvm(2)) as (before, state):
        patch.setattr(mapstate, "_MESSAGE", message)
        put(before, [pieces(first)])
        assert dict(state.items()) == first  # and keeps it
        for name in first:
            state.remove(name)
        put(state, [pieces(then)])
        for name, value in last.items():
            state.put(name, value)
        assert dict(state.items()) == then | last


def test_entries_are_written_as_pyflink_writes_them() -> None:
    """What the JVM gets of a put and of a commit."""
    entries, messages = {"é": b"", "user:a": b"row"}, []
    jvm = Jvm(2)
    with pytest.MonkeyPatch.context() as patch, states(jvm) as (state, other):
        patch.setattr(jvm, "_write", lambda _, data: messages.append(data))
        put(state, [pieces(entries)])
        for name, value in entries.items():
            other.put(name, value)
        other.get_internal_state().commit()
    assert messages[0] == messages[1] == put_together(*pieces(entries))


def test_another_pyflink_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapstate, "PYFLINK", "2.4.0")
    with states(Jvm(2)) as (state, _):
        for use in (read, lambda of: put(of, [pieces({"a": b"b"})])):
            with pytest.raises(RuntimeError, match=r"as PyFlink 2\.4\.0 does it, .* install"):
                use(state)


@pytest.mark.parametrize(
    ("batch", "problem"),
    [
        (b"\0\0\0\1a\0", "a name without a value"),
        (b"\0\0\0\1a", "a name without a value"),
        (b"\0\0\0\1a\1\0\0\0\2b", "not of texts and bytes"),
        (b"\0\0\0", "a name without a value"),
    ],
)
def test_what_is_no_such_map_is_refused(batch: bytes, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        taken_apart(batch)
