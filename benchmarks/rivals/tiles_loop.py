"""A plain loop that learns and counts what freshet does with its default windows, and writes the same to Redis.

    python -m benchmarks.rivals.tiles_loop FILE --redis URL [--factors 16]

Tiles of 5 minutes, an hour and a day for users and items (events, sum, first meetings of the day, events by type),
users' sessions with a gap of 30 minutes, and the learned fields with the header and the set of items, all as
``docs/redis-schema.md`` says. All that 100,000 events changed goes in one pipeline. Unlike freshet it drops no
duplicates, sets nothing late aside, learns in the order of arrival, keeps no metrics, compares no versions, and has no
state: a crash loses all.
"""

from __future__ import annotations

import argparse
import math
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from benchmarks.rivals import shared
from serving.connection import connect
from serving.schema import Field, Keys, encode_tile, encode_vector, span_ms, tile_field, version

KEYS: Final = Keys("freshet")
_SPANS: Final = ("5m", "1h", "1d")
_KEEP: Final = {"5m": span_ms("2h"), "1h": span_ms("3d"), "1d": span_ms("90d")}
_SESSION_GAP: Final = span_ms("30m")
_DAY: Final = span_ms("1d")
_OUT_OF_ORDERNESS: Final = 5_000
_HALF_LIFE: Final = span_ms("7d")
_SEEN: Final = 50
_FLUSH: Final = 100_000  # events

Counts = list[Any]  # events, sum, distinct, events by type


class Tiles:
    """The open windows of a family, the larger rolled up from the smaller."""

    def __init__(self) -> None:
        self._lengths = [span_ms(span) for span in _SPANS]
        self._open: list[dict[int, dict[str, Counts]]] = [{} for _ in _SPANS]

    def add(self, entity: str, time: int, value: float, kind: str, met: int) -> None:
        start = time - time % self._lengths[0]
        window = self._open[0].get(start)
        if window is None:
            window = self._open[0][start] = {}
        counts = window.get(entity)
        if counts is None:
            window[entity] = [1, value, met, {kind: 1}]
            return
        counts[0] += 1
        counts[1] += value
        counts[2] += met
        types = counts[3]
        types[kind] = types.get(kind, 0) + 1

    def closed(self, watermark: float) -> Iterator[tuple[str, int, dict[str, Counts]]]:
        """Takes out what no event from the watermark on can change: span, start, and counts by entity."""
        for level, (span, length) in enumerate(zip(_SPANS, self._lengths, strict=True)):
            for start in sorted(s for s in self._open[level] if s + length <= watermark):
                window = self._open[level].pop(start)
                if level + 1 < len(_SPANS):
                    larger = self._lengths[level + 1]
                    _add_up(self._open[level + 1].setdefault(start - start % larger, {}), window)
                yield span, start, window


def _add_up(into: dict[str, Counts], window: dict[str, Counts]) -> None:
    for entity, (n, total, met, types) in window.items():
        known = into.get(entity)
        if known is None:
            into[entity] = [n, total, met, dict(types)]
            continue
        known[0] += n
        known[1] += total
        known[2] += met
        for kind, count in types.items():
            known[3][kind] = known[3].get(kind, 0) + count


class Loop:
    """All that the loop knows, and what is to be written of it."""

    def __init__(self, redis_url: str, n_factors: int) -> None:
        self._redis = connect(redis_url)
        self._model = shared.new_model(n_factors)
        self._n_factors = n_factors
        self._epoch, self._seq, self._newest = int(shared.now()), 0, 0
        self._closes_at = 0
        self._users, self._items = Tiles(), Tiles()
        self._met: dict[int, set[tuple[str, str]]] = {}
        # By user: start, end, events, sum and items of the open session.
        self._sessions: dict[str, tuple[int, int, int, float, set[str]]] = {}
        # By user: events, newest, seq and items seen. By item: events, newest, seq and popularity.
        self._of_user: dict[str, tuple[int, int, int, dict[str, None]]] = {}
        self._of_item: dict[str, tuple[int, int, int, float]] = {}
        self._touched_users: set[str] = set()
        self._touched_items: set[str] = set()
        self._puts: dict[str, dict[str, Any]] = {}
        self._removes: dict[str, list[str]] = {}
        self._written: dict[tuple[str, str], deque[int]] = {}
        self._first = 0.0

    def run(self, path: Path) -> None:
        with path.open("rb") as file:
            self._first = shared.now()
            for line in file:
                event = orjson.loads(line)
                user, item = event["user_id"], event["item_id"]
                self._one(user, item, event["event_type"], event["event_value"], event["timestamp"])
                if self._seq % _FLUSH == 0:
                    self._flush()
        self._close(math.inf)
        self._flush()

    def _one(self, user: str, item: str, kind: str, value: float, time: int) -> None:
        model = self._model
        model.predict_one(user, item)
        model.learn_one(user, item, value)
        self._seq += 1
        self._know(user, item, time)
        pairs = self._met.get(day := time - time % _DAY)
        if pairs is None:
            pairs = self._met[day] = set()
        met = (user, item) not in pairs
        if met:
            pairs.add((user, item))
        self._users.add(user, time, value, kind, met)
        self._items.add(item, time, value, kind, met)
        self._session(user, item, time, value)
        if time > self._newest:
            self._newest = time
            if time - _OUT_OF_ORDERNESS >= self._closes_at:
                self._close(time - _OUT_OF_ORDERNESS)

    def _know(self, user: str, item: str, time: int) -> None:
        count, newest, _, seen = self._of_user.get(user) or (0, 0, 0, {})
        seen.pop(item, None)
        seen[item] = None
        if len(seen) > _SEEN:
            del seen[next(iter(seen))]
        self._of_user[user] = (count + 1, max(newest, time), self._seq, seen)
        at = time / _HALF_LIFE
        known = self._of_item.get(item)
        if known is None:
            self._of_item[item] = (1, time, self._seq, at)
        else:
            count, newest, _, popularity = known
            high, low = max(popularity, at), min(popularity, at)
            self._of_item[item] = (count + 1, max(newest, time), self._seq, high + math.log2(1 + 2 ** (low - high)))
        self._touched_users.add(user)
        self._touched_items.add(item)

    def _session(self, user: str, item: str, time: int, value: float) -> None:
        known = self._sessions.get(user)
        if known is None:
            self._sessions[user] = (time, time, 1, value, {item})
            return
        start, end, n, total, items = known
        if time <= end + _SESSION_GAP:
            items.add(item)
            self._sessions[user] = (min(start, time), max(end, time), n + 1, total + value, items)
            return
        self._put_session(user)
        self._sessions[user] = (time, time, 1, value, {item})

    def _put_session(self, user: str) -> None:
        start, end, n, total, items = self._sessions[user]
        session = {"n": n, "sum": total, "distinct": len(items), "start": start, "end": end}
        fields = self._puts.setdefault(KEYS.user(user), {})
        fields |= {Field.SESSION: orjson.dumps(session), "session_end": end}

    def _close(self, watermark: float) -> None:
        """Notes all windows that have closed; called when the next may have."""
        for tiles, key_of in ((self._users, KEYS.user), (self._items, KEYS.item)):
            for span, start, window in tiles.closed(watermark):
                field = tile_field(span, start)
                for entity, (n, total, met, types) in window.items():
                    key = key_of(entity)
                    self._puts.setdefault(key, {})[field] = encode_tile(n, total, met, types)
                    self._prune(key, span, start)
        for user in [u for u, (_, end, *_) in self._sessions.items() if end + _SESSION_GAP < watermark]:
            self._put_session(user)
            del self._sessions[user]
        for day in [d for d in self._met if d + _DAY < watermark]:
            del self._met[day]
        if watermark < math.inf:
            length = span_ms(_SPANS[0])
            self._closes_at = int(watermark) - int(watermark) % length + length

    def _prune(self, key: str, span: str, start: int) -> None:
        written = self._written.setdefault((key, span), deque())
        written.append(start)
        while written[0] < start - _KEEP[span]:
            field = tile_field(span, written.popleft())
            if self._puts[key].pop(field, None) is None:
                self._removes.setdefault(key, []).append(field)

    def _flush(self) -> None:
        model, puts = self._model, self._puts
        for user in self._touched_users:
            count, newest, seq, seen = self._of_user[user]
            fields = puts.setdefault(KEYS.user(user), {})
            fields |= self._learned(count, newest, seq, model.u_biases[user], model.u_latents[user])
            fields |= {Field.SHARD: 0, Field.SEEN: orjson.dumps(list(seen))}
        members: dict[str, int] = {}
        for item in self._touched_items:
            count, newest, seq, popularity = self._of_item[item]
            fields = puts.setdefault(KEYS.item(item), {})
            fields |= self._learned(count, newest, seq, model.i_biases[item], model.i_latents[item])
            fields[Field.POPULARITY] = repr(popularity)
            members[item] = seq
        pipeline = self._redis.pipeline(transaction=False)
        for key, fields in puts.items():
            pipeline.hset(key, mapping=fields)
        for key, old in self._removes.items():
            pipeline.hdel(key, *old)
        if members:
            pipeline.zadd(KEYS.items(0), members)
        pipeline.hset(KEYS.model(0), mapping=self._header())
        pipeline.execute()
        shared.note(self._redis, 0, self._first, self._seq)
        for waiting in (self._touched_users, self._touched_items, self._puts, self._removes):
            waiting.clear()

    def _learned(self, count: int, newest: int, seq: int, bias: float, vector: Any) -> dict[str, Any]:
        return {
            Field.VERSION: version(self._epoch, 1, seq),
            Field.COUNT: count,
            Field.UPDATED_AT: newest,
            Field.BIAS: repr(bias),
            Field.VECTOR: encode_vector(vector),
        }

    def _header(self) -> dict[str, Any]:
        return {
            Field.VERSION: version(self._epoch, 1, self._seq),
            "model": "biased_mf",
            "global_mean": repr(self._model.global_mean.get()),
            "n_factors": self._n_factors,
            "shards": 1,
            "seq": self._seq,
            "updated_at": self._newest,
            "users": len(self._of_user),
            "items": len(self._of_item),
            "items_dropped": 0,
            "tail_rows": 0,
            "metrics": b"{}",
            "summary": b"{}",
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--factors", type=int, default=16)
    arguments = parser.parse_args()
    Loop(arguments.redis, arguments.factors).run(arguments.file)
    print(shared.clock(connect(arguments.redis)))


if __name__ == "__main__":
    main()
