"""Look-ups for a serving app: state of users and items, scores, recommendations.

Needs Redis and numpy, and nothing of the job. No look-up creates state; an unknown id gives None or an empty
answer; a Redis that can't be reached gives one :class:`Unreachable`.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, ParamSpec, TypeVar

import numpy as np
import orjson
import redis

from serving import blend
from serving.connection import connect, without_password
from serving.identity import hidden
from serving.schema import Field, Keys, Tile, decode_tiles, decode_vector, shard_of, sharded, tail_of, window

P = ParamSpec("P")
T = TypeVar("T")
Vector = np.ndarray[Any, Any]

_BATCH: Final = 5_000


class Unreachable(ConnectionError):
    """Redis can't be reached, or does not answer; the message says which."""


@dataclass(frozen=True)
class Learned:
    """What a shard learned of an entity.

    Attributes
    ----------
    vector
        Latent factors, shape ``(n_factors,)``; empty where the model has none.
    count
        Events learned.
    updated_at
        Time of the newest of them, epoch milliseconds.
    version
        Grows with every change.
    popularity
        Items only: orders items by decayed popularity at any moment.
    """

    vector: Vector
    bias: float
    count: int
    updated_at: int
    version: str
    popularity: float | None = None


@dataclass(frozen=True)
class Session:
    """A user's last closed session: times in epoch milliseconds; ``distinct`` counts its items."""

    start: int
    end: int
    events: int
    distinct: int


@dataclass(frozen=True)
class UserState:
    user_id: str
    shard: int | None
    learned: Learned | None
    seen: Sequence[str]
    tiles: Mapping[str, Mapping[int, Tile]]
    session: Session | None
    history: blend.History | None = None

    def last(self, span: str, as_of: int) -> Tile:
        """What the user did in the last ``span`` (such as ``1h``) before ``as_of`` (ms): closed windows only."""
        return window(self.tiles, span, as_of)


@dataclass(frozen=True)
class ItemState:
    """``learned`` is by shard, since the factor spaces of shards are not comparable."""

    item_id: str
    learned: Mapping[int, Learned]
    catalogue: Mapping[str, Any] | None
    tiles: Mapping[str, Mapping[int, Tile]]

    def last(self, span: str, as_of: int) -> Tile:
        """What happened to the item in the last ``span`` before ``as_of`` (ms): closed windows only."""
        return window(self.tiles, span, as_of)


@dataclass(frozen=True)
class Recommendation:
    item_id: str
    score: float
    catalogue: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Recommendations:
    """``known`` is False for a user of whom nothing was learned, who gets what is popular now."""

    user_id: str
    known: bool
    items: Sequence[Recommendation]


@dataclass(frozen=True)
class Scores:
    """How well a shard did at a time (wall clock, epoch ms), when it had learned ``seq`` events.

    Attributes
    ----------
    metrics
        Errors of a model that predicts values, over its life: ``mae``, ``rmse``, ..., ``n``; None of a blend.
    ranking
        Where rankings are evaluated: ``protocol``, and by the name of each ranker ``hit``, ``ndcg``, ``mrr`` and ``n``,
        in ``all`` over the model's life, in ``recent`` over the last events, and by segment. The model itself comes
        first. Then ``coverage``, ``beaten_by`` and ``cut_groups``.
    """

    time: int
    shard: int
    seq: int
    metrics: Mapping[str, Any] | None = None
    ranking: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class ModelHeader:
    """A shard's header.

    Attributes
    ----------
    tail_rows
        The rows that ids share which have none of their own; 0 where all have.
    updated_at
        Time of the newest event, epoch milliseconds.
    blend
        What a blend ranks by; None for other models.
    """

    model: str
    global_mean: float
    n_factors: int
    shards: int
    summary: Mapping[str, Any]
    tail_rows: int = 0
    updated_at: int = 0
    blend: blend.BlendHeader | None = None

    @property
    def repeats(self) -> bool:
        """Whether what a user met is recommended again, as far as the job says."""
        told = self.summary.get("repeats")
        return self.blend is not None if told is None else bool(told)


def _reaching(method: Callable[P, T]) -> Callable[P, T]:
    """Turns every way in which Redis can be away into one error."""

    @functools.wraps(method)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
            client: Any = args[0]
            raise Unreachable(f"Redis at {client.where} does not answer: {error}") from error

    return wrapped


class Client:
    """Looks up what a job has learned.

    Parameters
    ----------
    connection
        A redis-py client (any that does not decode responses), or a URL.
    prefix
        As the job was given it.
    id_key
        Where the job hides the ids of users (``ids.key_file``), its key, see :func:`~serving.identity.key_from`.
    max_age
        Seconds that rankings may be behind in what is known of items. Each reads what changed since the one before,
        which of many items, beside a job that learns fast, takes longer than all else; with this it is done as seldom.
        What is known of the user is never old.

    Examples
    --------
    >>> client = Client("redis://localhost:6379")                    # doctest: +SKIP
    >>> client.user("42").last("1h", as_of=1704067200000).events     # doctest: +SKIP
    3
    >>> [r.item_id for r in client.recommend("42", k=10).items]      # doctest: +SKIP
    ['7', '19', ...]
    """

    def __init__(
        self, connection: Any, prefix: str = "freshet", id_key: bytes | None = None, max_age: float = 0.0
    ) -> None:
        self.where = without_password(connection) if isinstance(connection, str) else "the given connection"
        self._redis = connect(connection) if isinstance(connection, str) else connection
        self.keys = Keys(prefix)
        self._id_key = id_key
        self._max_age = max_age
        self._matrices: dict[int, _ItemMatrix] = {}

    # --------------------------------------------------------------------------------------- entities

    def _kept_as(self, user_id: str) -> str:
        return user_id if self._id_key is None else hidden(user_id, self._id_key)

    def user(self, user_id: str) -> UserState | None:
        """A user's state; None if unknown."""
        return self.users([user_id])[user_id]

    def item(self, item_id: str) -> ItemState | None:
        """An item's state; None if unknown."""
        return self.items([item_id])[item_id]

    @_reaching
    def users(self, user_ids: Sequence[str]) -> dict[str, UserState | None]:
        """Many users in one round trip."""
        hashes = self._hashes([self.keys.user(self._kept_as(user_id)) for user_id in user_ids])
        return {u: _user(u, fields) if fields else None for u, fields in zip(user_ids, hashes, strict=True)}

    @_reaching
    def items(self, item_ids: Sequence[str]) -> dict[str, ItemState | None]:
        """Many items in one round trip."""
        hashes = self._hashes([self.keys.item(item_id) for item_id in item_ids])
        return {i: _item(i, fields) if fields else None for i, fields in zip(item_ids, hashes, strict=True)}

    @_reaching
    def header(self, shard: int = 0) -> ModelHeader | None:
        """A shard's header; None before it has learned anything."""
        fields = self._redis.hgetall(self.keys.model(shard))
        if not fields:
            return None
        return ModelHeader(
            model=fields[b"model"].decode(),
            global_mean=float(fields[b"global_mean"]),
            n_factors=int(fields[b"n_factors"]),
            shards=int(fields[b"shards"]),
            summary=orjson.loads(fields[b"summary"]),
            tail_rows=int(fields.get(b"tail_rows", 0)),
            updated_at=int(fields[b"updated_at"]),
            blend=blend.BlendHeader.parse(fields[b"blend"]) if b"blend" in fields else None,
        )

    @_reaching
    def metrics(self, n: int = 100) -> Sequence[Scores]:
        """How well the model did of late: the last ``n`` entries of all shards, the newest last."""
        entries = self._redis.zrange(self.keys.metrics, -n, -1) if n > 0 else []
        read = map(orjson.loads, entries)
        return [Scores(e["time"], e["shard"], e["seq"], e.get("metrics"), e.get("ranking")) for e in read]

    @_reaching
    def known_items(self) -> set[str]:
        """The ids of all items that were learned."""
        header = self.header()
        shards = range(header.shards if header else 0)
        return {member.decode() for s in shards for member in self._redis.zrange(self.keys.items(s), 0, -1)}

    def _hashes(self, keys: Sequence[str]) -> list[dict[bytes, bytes]]:
        pipe = self._redis.pipeline(transaction=False)
        for key in keys:
            pipe.hgetall(key)
        answers: list[dict[bytes, bytes]] = pipe.execute()
        return answers

    # ---------------------------------------------------------------------------------------- ranking

    @_reaching
    def score(self, user_id: str, item_ids: Sequence[str]) -> dict[str, float | None]:
        """The model's prediction for a user and each item: global mean, biases, and the product of the vectors.

        What a blend gives only orders items.

        None for items that the user's shard does not know, and for all where the user is unknown; but where ids must
        come more than once for a row (``growth.min_events``), those that have none are scored by the row that they
        share. Computed from FLOAT32 vectors.
        """
        user = self.user(user_id)
        learned, shard = (user.learned, user.shard) if user else (None, None)
        if shard is None:
            first = self.header()
            shard = shard_of(self._kept_as(user_id), first.shards) if first is not None and first.tail_rows else 0
        header = self.header(shard)
        if header is None:
            return dict.fromkeys(item_ids)
        if learned is None and header.tail_rows:
            kept_as = self._kept_as(user_id)
            learned = self._shared(header, shard, "user", [kept_as])[kept_as]
        if learned is None:
            return dict.fromkeys(item_ids)
        if header.blend is not None and user is not None:
            matrix = self._matrix(shard)
            scores = self._blended(user, matrix, shard, header, header.blend)
            return {i: float(scores[matrix.rows[i]]) if i in matrix.rows else None for i in item_ids}
        of_items = {i: item.learned.get(shard) if item else None for i, item in self.items(item_ids).items()}
        if header.tail_rows:
            of_items |= self._shared(header, shard, "item", [i for i, known in of_items.items() if known is None])
        return {
            item_id: None
            if of_item is None
            else header.global_mean
            + learned.bias
            + of_item.bias
            + float(learned.vector.astype("f8") @ of_item.vector.astype("f8"))
            for item_id, of_item in of_items.items()
        }

    def _shared(self, header: ModelHeader, shard: int, family: str, ids: Sequence[str]) -> dict[str, Learned | None]:
        """What is known of the rows that ids share which have none of their own."""
        hashes = self._hashes([self.keys.tail(shard, family, tail_of(i, header.tail_rows)) for i in ids])
        suffix = "" if family == "user" else sharded("", shard, header.shards)
        return {i: _learned(fields, suffix) for i, fields in zip(ids, hashes, strict=True)}

    @_reaching
    def recommend(self, user_id: str, k: int = 10, *, exclude_seen: bool | None = None) -> Recommendations:
        """The ``k`` items that the model ranks highest for a user, over all items that were learned.

        Exact. A user of whom nothing was learned gets the items with the highest decayed popularity.

        Parameters
        ----------
        exclude_seen
            Whether the user's last items, those in :attr:`UserState.seen`, are left out. By default as the job
            evaluates its model: a blend ranks them with the rest, as people come back to things, and other models leave
            them out, unless ``ranking.repeats`` says otherwise.
        """
        user = self.user(user_id)
        if user is None or user.learned is None or user.shard is None:
            return Recommendations(user_id, False, self._popular(k))
        matrix = self._matrix(user.shard)
        header = self.header(user.shard)
        if header is None or not matrix.ids:
            return Recommendations(user_id, True, [])
        if header.blend is not None:
            scores = self._blended(user, matrix, user.shard, header, header.blend)
        else:
            scores = matrix.biases + (header.global_mean + user.learned.bias)
            if matrix.vectors.shape[1]:
                scores = scores + matrix.vectors @ user.learned.vector
        if exclude_seen is None:
            exclude_seen = not header.repeats
        excluded = user.seen if exclude_seen else ()
        return Recommendations(user_id, True, self._best(matrix, scores, excluded, k))

    def _blended(
        self, user: UserState, matrix: _ItemMatrix, shard: int, header: ModelHeader, of: blend.BlendHeader
    ) -> Vector:
        """The score of each row of the matrix for a user who is known."""
        rows = matrix.by_number
        met = (user.history or blend.History()).placed(rows)
        last = met.items[::-1][: max(of.recent, of.recent_embedded)].tolist()  # who is asked for has no open basket
        name = sharded(Field.LINKS, shard, header.shards)
        pipe = self._redis.pipeline(transaction=False)
        for row in last:
            pipe.hget(self.keys.item(matrix.ids[row]), name)
        links = {
            row: blend.ItemLinks.parse(text, rows)
            for row, text in zip(last, pipe.execute(), strict=True)
            if text is not None  # else the item expired
        }
        as_of = max(header.updated_at, met.time + 1)
        return blend.scores(of.placed(rows), matrix.stats, matrix.vectors, met, links, as_of)

    @_reaching
    def similar(self, item_id: str, k: int = 10) -> Sequence[Recommendation] | None:
        """The ``k`` items whose vectors have the highest cosine with this item's; None if it is unknown.

        With several shards, in the shard that learned the item from the most events. Empty where the model
        has no factors.
        """
        item = self.item(item_id)
        if item is None:
            return None
        if not item.learned:
            return []
        shard = max(item.learned, key=lambda s: (item.learned[s].count, -s))
        matrix = self._matrix(shard)
        vector = item.learned[shard].vector
        if not matrix.ids or not vector.size:
            return []
        lengths = matrix.lengths * float(np.linalg.norm(vector))
        cosines = np.divide(matrix.vectors @ vector, lengths, out=np.zeros(len(matrix.ids)), where=lengths > 0)
        return self._best(matrix, cosines, (item_id,), k)

    def _popular(self, k: int) -> list[Recommendation]:
        header = self.header()
        totals: dict[str, float] = {}
        for shard in range(header.shards if header else 0):
            matrix = self._matrix(shard)
            for item_id, value in zip(matrix.ids, matrix.popularity.tolist(), strict=True):
                # The sums behind the logarithms add up over shards.
                totals[item_id] = float(np.logaddexp2(totals.get(item_id, -np.inf), value))
        best = sorted(totals, key=lambda i: (-totals[i], i))[:k]
        return self._with_catalogue(best, [totals[i] for i in best])

    def _best(self, matrix: _ItemMatrix, scores: Vector, excluded: Sequence[str], k: int) -> list[Recommendation]:
        scores = np.array(scores, dtype="f8")
        rows = [row for item_id in excluded if (row := matrix.rows.get(item_id)) is not None]
        scores[rows] = -np.inf
        k = min(max(k, 0), len(matrix.ids) - len(rows))
        if k == 0:
            return []
        least = -np.partition(-scores, k - 1)[k - 1]
        # Equal scores in the order of their ids, so that the same state gives the same answer.
        top = np.flatnonzero(scores >= least).tolist()
        order = sorted(top, key=lambda row: (-scores[row], matrix.ids[row]))[:k]
        return self._with_catalogue([matrix.ids[row] for row in order], [float(scores[row]) for row in order])

    def _with_catalogue(self, item_ids: Sequence[str], scores: Sequence[float]) -> list[Recommendation]:
        pipe = self._redis.pipeline(transaction=False)
        for item_id in item_ids:
            pipe.hget(self.keys.item(item_id), Field.CATALOGUE)
        blobs = pipe.execute()
        return [
            Recommendation(item_id, score, orjson.loads(blob) if blob else None)
            for item_id, score, blob in zip(item_ids, scores, blobs, strict=True)
        ]

    def _matrix(self, shard: int) -> _ItemMatrix:
        matrix = self._matrices.setdefault(shard, _ItemMatrix(shard))
        matrix.refresh(self._redis, self.keys, self._max_age)
        return matrix


class _ItemMatrix:
    """All items of a shard as arrays, brought up to date by what changed since the last look."""

    def __init__(self, shard: int) -> None:
        self._shard = shard
        self._clear()

    def _clear(self) -> None:
        self.ids: list[str] = []
        self.rows: dict[str, int] = {}
        self._vectors = np.empty((0, 0), dtype="f4")
        self._biases = np.empty(0)
        self._popularity = np.empty(0)
        # Of a blend: what it knows of each item, and the row of each of its numbers, -1 where it is not here yet.
        self._stats = np.empty(0, blend.STATS)
        self.by_number = np.empty(0, dtype=np.intp)
        self._seq = -1.0
        self._dropped = 0
        self._epoch = b""
        self._read_at = -math.inf

    @property
    def vectors(self) -> Vector:
        """Shape ``(n_items, n_factors)``."""
        return self._vectors[: len(self.ids)]

    @property
    def lengths(self) -> Vector:
        """Euclidean lengths of the vectors."""
        lengths: Vector = np.linalg.norm(self.vectors, axis=1)
        return lengths

    @property
    def biases(self) -> Vector:
        return self._biases[: len(self.ids)]

    @property
    def popularity(self) -> Vector:
        return self._popularity[: len(self.ids)]

    @property
    def stats(self) -> Vector:
        """Of a blend: dtype :data:`serving.blend.STATS`."""
        return self._stats[: len(self.ids)]

    def refresh(self, connection: Any, keys: Keys, max_age: float) -> None:
        version, shards, items_dropped = connection.hmget(
            keys.model(self._shard), Field.VERSION, "shards", "items_dropped"
        )
        if version is None:
            self._clear()
            return
        epoch, _, seq = version.rpartition(b".")
        if epoch != self._epoch:
            # The job was started anew, perhaps with other shards, or replays what it had learned, perhaps in another
            # order: what was known before is gone.
            self._clear()
            self._epoch = epoch
        now = time.monotonic()
        if self.ids and now - self._read_at < max_age:
            return
        self._read_at = now
        fields = [
            sharded(f, self._shard, int(shards)) for f in (Field.VECTOR, Field.BIAS, Field.POPULARITY, Field.STATS)
        ]
        changed = connection.zrangebyscore(keys.items(self._shard), f"({self._seq}", "+inf")
        for start in range(0, len(changed), _BATCH):
            part = changed[start : start + _BATCH]
            pipe = connection.pipeline(transaction=False)
            for member in part:
                pipe.hmget(keys.item(member.decode()), fields)
            for member, (vector, bias, popularity, stats) in zip(part, pipe.execute(), strict=True):
                if popularity is not None:
                    self._put(member.decode(), decode_vector(vector), float(bias or 0), float(popularity), stats)
        # A group is written from its members to the header: what is beyond may not be there yet, and is read again.
        self._seq = float(seq)
        dropped = int(items_dropped or 0)
        if dropped != self._dropped:
            known = {member.decode() for member in connection.zrange(keys.items(self._shard), 0, -1)}
            for item_id in [item_id for item_id in self.ids if item_id not in known]:
                self._remove(item_id)
            self._dropped = dropped

    def _put(self, item_id: str, vector: Vector, bias: float, popularity: float, stats: bytes | None) -> None:
        row = self.rows.get(item_id)
        if row is None:
            row = self.rows[item_id] = len(self.ids)
            self.ids.append(item_id)
            if row >= len(self._biases):
                size = max(1_024, 2 * row)
                grown = np.zeros((size, vector.size), dtype="f4")
                grown[:row] = self._vectors[:row] if row else grown[:row]
                self._vectors = grown
                self._biases = np.concatenate([self._biases, np.zeros(size - row)])
                self._popularity = np.concatenate([self._popularity, np.zeros(size - row)])
                self._stats = np.concatenate([self._stats, np.zeros(size - row, blend.STATS)])
        if stats is not None:
            self._stats[row] = np.frombuffer(stats, blend.STATS)[0]
            number = int(self._stats[row]["number"])
            if number >= len(self.by_number):
                more = np.full(max(1_024, 2 * number) - len(self.by_number), -1, dtype=np.intp)
                self.by_number = np.concatenate([self.by_number, more])
            self.by_number[number] = row
        self._vectors[row] = vector
        self._biases[row] = bias
        self._popularity[row] = popularity

    def _remove(self, item_id: str) -> None:
        """The last row takes the place of the one that goes."""
        row, last = self.rows.pop(item_id), len(self.ids) - 1
        if row != last:
            self.ids[row] = self.ids[last]
            self.rows[self.ids[row]] = row
            for of in (self._vectors, self._biases, self._popularity, self._stats):
                of[row] = of[last]
        self.ids.pop()


def _learned(fields: Mapping[bytes, bytes], suffix: str) -> Learned | None:
    def get(name: str) -> bytes | None:
        return fields.get(f"{name}{suffix}".encode())

    count, updated_at, version = get(Field.COUNT), get(Field.UPDATED_AT), get(Field.VERSION)
    if count is None or updated_at is None or version is None:
        return None
    popularity = get(Field.POPULARITY)
    return Learned(
        vector=decode_vector(get(Field.VECTOR)),
        bias=float(get(Field.BIAS) or 0),
        count=int(count),
        updated_at=int(updated_at),
        version=version.decode(),
        popularity=float(popularity) if popularity is not None else None,
    )


def _user(user_id: str, fields: Mapping[bytes, bytes]) -> UserState:
    session = orjson.loads(fields[b"session"]) if b"session" in fields else None
    return UserState(
        user_id=user_id,
        shard=int(fields[b"shard"]) if b"shard" in fields else None,
        learned=_learned(fields, ""),
        seen=orjson.loads(fields.get(b"seen", b"[]")),
        tiles=decode_tiles(fields),
        session=Session(session["start"], session["end"], session["n"], session["distinct"]) if session else None,
        history=blend.History.parse(fields[b"history"]) if b"history" in fields else None,
    )


def _item(item_id: str, fields: Mapping[bytes, bytes]) -> ItemState:
    suffixes = {0: ""} if Field.VERSION.encode() in fields else {}
    for name in fields:
        if name.startswith(b"version:"):
            shard = int(name.partition(b":")[2])
            suffixes[shard] = f":{shard}"
    learned = {shard: state for shard, suffix in suffixes.items() if (state := _learned(fields, suffix)) is not None}
    catalogue = fields.get(Field.CATALOGUE.encode())
    return ItemState(
        item_id=item_id,
        learned=learned,
        catalogue=orjson.loads(catalogue) if catalogue else None,
        tiles=decode_tiles(fields),
    )
