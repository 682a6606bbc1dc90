"""What is written to Redis of learned rows, of rows that were dropped, of a shard's header and of closed windows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, repeat
from typing import Any, Final

import numpy as np
import orjson

from serving.schema import (
    KEPT,
    LEARNED_OF_ITEM,
    Field,
    Keys,
    encode_tile,
    sharded,
    tile_field,
    vector_rows,
    version_before,
)
from udfs import metrics, words
from udfs.learner import Learner
from udfs.models import ITEM, USER, Array, RankingModel
from udfs.pieces import Pieces, side_by_side
from udfs.publisher import Author, Call, Entity, Part, Word, parts, slices
from udfs.ranking import SEGMENTS
from udfs.rows import EncodedRows
from udfs.tail import tail_number
from udfs.tilefeed import OF_USER, RECORD, UNIT, split_pair, total, unescape

_AT_ONCE: Final = 2_000  # rows, or tiles, whose writes are made together: what Redis writes meanwhile
_SESSION: Final = "session" + UNIT  # how its record begins


class LearnedEntities:
    """The Redis writes for the users and the items that a group changed, for :meth:`Publisher.learned`.

    They are made some thousands at a time, while who iterates goes on, so Redis writes the first while the next are
    made; also in another thread while the learner goes on.

    Parameters
    ----------
    learner
        Who has just learned the group.
    encoded
        The touched rows by family, as they are stored.
    """

    def __init__(self, learner: Learner, encoded: Mapping[str, EncodedRows], author: Author) -> None:
        self._encoded, self._author = encoded, author
        self._model, self._seq = learner.model.to_publish(), learner.seq
        self._has_tail = learner.config.growth.has_tail

    def __len__(self) -> int:
        return sum(len(rows.row_ids) for rows in self._encoded.values())

    def parts(self) -> Iterator[Part]:
        for family in (USER, ITEM):
            rows = self._encoded[family]
            for start in range(0, len(rows.row_ids), _AT_ONCE):
                yield from self._made(family, rows.part(start, start + _AT_ONCE))

    def items(self) -> dict[str, int]:
        """The items that have rows of their own, by their ``seq``."""
        rows = self._encoded[ITEM]
        items = dict(zip(rows.row_ids, self._seqs(ITEM, rows).tolist(), strict=True))
        if self._has_tail:
            return {row_id: seq for row_id, seq in items.items() if tail_number(row_id) is None}
        return items

    def _seqs(self, family: str, rows: EncodedRows) -> Array:
        if family == ITEM and isinstance(self._model, RankingModel):
            return np.full(len(rows.row_ids), self._seq)  # events of other items change a row, too
        seqs: Array = rows.heads["seq"]
        return seqs

    def _made(self, family: str, rows: EncodedRows) -> Iterator[Part]:
        # Column by column: a call for each number takes longer than all else.
        model, author, heads = self._model, self._author, rows.heads
        keys, shard, shards = author.keys, author.shard, author.shards
        key_of, of_shard = (keys.user, 1) if family == USER else (keys.item, shards)
        values: dict[str, list[words.Column]] = {
            Field.VERSION: words.numbered(version_before(author.epoch, author.attempt), self._seqs(family, rows)),
            Field.COUNT: words.numbers(heads["count"]),
            Field.UPDATED_AT: words.numbers(heads["updated_at"]),
        }
        if not isinstance(model, RankingModel):
            values[Field.BIAS] = words.numbers(model.biases(family, rows.weights))
        vectors = model.vectors(family, rows.weights)
        if vectors.shape[1]:
            values[Field.VECTOR] = words.octets(vector_rows(vectors))
        for name, more in model.more_fields(family, rows.weights, rows.tails).items():
            values[name] = words.octets(more) if isinstance(more, np.ndarray) else words.texts(Pieces.of(more))
        if family == USER:
            values |= {Field.SHARD: [words.word(str(shard))], Field.SEEN: words.texts(rows.seen)}
        else:
            values[Field.POPULARITY] = words.numbers(heads["popularity"])
        row_keys = [*map(key_of, rows.row_ids)]
        if self._has_tail:
            for at, row_id in enumerate(rows.row_ids):
                if (shared := tail_number(row_id)) is not None:
                    row_keys[at] = keys.tail(shard, family, shared)
        fields = words.array([sharded(name, shard, of_shard) for name in values])
        made = side_by_side(chain.from_iterable(values.values()), len(row_keys))
        for some in slices(len(row_keys)):
            yield Part(row_keys[some], fields, words.joined(made[some], len(values)))


def dropped_calls(learner: Learner, dropped: Mapping[str, Iterable[str]], author: Author) -> list[Call]:
    """The calls that take the learned fields of dropped rows out of Redis, given as ids by family.

    To be made when the learner has learned nothing since that would bring one of them back.
    """
    calls: list[Call] = []
    keys, shard, shards, up_to = author.keys, author.shard, author.shards, author.version(learner.seq)
    of_users = [Field.VERSION, Field.COUNT, Field.UPDATED_AT, Field.BIAS, Field.VECTOR]
    of_users += [Field.SHARD, Field.SEEN, Field.HISTORY]
    of_items = [sharded(name, shard, shards) for name in LEARNED_OF_ITEM]
    for family, key_of, fields in ((USER, keys.user, of_users), (ITEM, keys.item, of_items)):
        for part in parts(list(dropped.get(family, ()))):
            row_keys = [key_of(row_id) for row_id in part]
            members = part if family == ITEM else ()
            calls.append(("drop_learned", [keys.items(shard), *row_keys], [up_to, len(fields), *fields, *members]))
    return calls


def header_entity(learner: Learner, author: Author) -> Entity:
    """The Redis write for a shard's header."""
    summary = learner.summary()
    of_header: list[Word] = []
    for name, value in {
        "model": learner.model.name,
        "global_mean": repr(learner.model.global_mean()),
        "n_factors": learner.model.n_factors,
        "shards": author.shards,
        "seq": learner.seq,
        "reached": orjson.dumps(learner.reached),
        "updated_at": learner.updated_at,
        "users": summary["users"],
        "items": summary["items"],
        "items_dropped": learner.dropped[ITEM],
        "tail_rows": learner.config.growth.tail_rows if learner.config.growth.has_tail else 0,
        "metrics": orjson.dumps(summary["metrics"]),
        "summary": orjson.dumps(summary),
        **learner.model.header_fields(),
    }.items():
        of_header += (name, value.decode() if isinstance(value, bytes) else value)
    # Not the batch's number: a replay need not cut the log as it was cut before. A header of the same seq is taken.
    return author.keys.model(author.shard), [Field.VERSION, author.version(learner.seq).decode(), *of_header]


def history_calls(learner: Learner, author: Author, now: int) -> list[Call]:
    """The calls that add how well a learner does at a time, the wall clock in ms, to the metrics' history; none before
    anything was scored. Made again they change nothing."""
    scores: dict[str, Any] = {}
    errors = metrics.values(learner.scores.means)
    if errors["n"]:
        scores["metrics"] = errors
    if learner.ranking is not None:
        shown = learner.ranking.values(known=learner.known(ITEM))
        told = ("protocol", *SEGMENTS, "recent", "coverage", "beaten_by", "cut_groups")
        if shown["all"][learner.ranking.names[0]]["n"]:
            scores["ranking"] = {name: shown[name] for name in told}
    if not scores:
        return []
    key, entry = author.keys.metrics, {"time": now, "shard": author.shard, "seq": learner.seq, **scores}
    return [
        ("shard_note", [], ("ZADD", key, now, orjson.dumps(entry))),
        ("shard_note", [], ("ZREMRANGEBYRANK", key, 0, -1 - KEPT)),
    ]


def tile_entities(results: Iterable[str], keys: Keys, event_types: Sequence[str], part: int) -> list[Entity]:
    """The Redis writes for gathered windows.

    Parameters
    ----------
    results
        Strings of records joined by :data:`RECORD`, as the topology's SQL gathers them: span (or ``session``), the id
        as in the feed, start, end, events and distinct paired, both limbs of the sum, then the counts by type in the
        order of ``event_types``, two and two paired; joined by :data:`UNIT`. Times are milliseconds.
    """
    records = [record for text in results for record in text.split(RECORD)]
    sessions = [record.split(UNIT) for record in records if record.startswith(_SESSION)]
    tiles = [record for record in records if not record.startswith(_SESSION)]
    entities: dict[str, list[Word]] = {}
    for at in range(0, len(tiles), _AT_ONCE):  # a tile taken apart is a dozen objects
        for key, tile in zip(*_tiles(tiles[at : at + _AT_ONCE], keys, event_types, part), strict=True):
            entities.setdefault(key, ["", ""]).extend(tile)
    for _, entity_id, start, end, met, high, low in sessions:
        key, ended, (n, distinct) = _key(entity_id, keys), int(end), split_pair(int(met))
        entity = entities.setdefault(key, ["", ""])
        if ended >= int(entity[0] or 0):
            session = {
                "n": n,
                "sum": total(int(high), int(low)),
                "distinct": distinct,
                "start": int(start),
                "end": ended,
            }
            entity[:2] = str(ended), orjson.dumps(session).decode()
    return [*entities.items()]


def _tiles(
    tiles: Sequence[str], keys: Keys, event_types: Sequence[str], part: int
) -> tuple[Iterable[str], Iterable[tuple[str, ...]]]:
    """Keys and words of tiles: column by column, as a call for each field of a tile takes longer than all else."""
    fields, width = UNIT.join(tiles).split(UNIT), tiles[0].count(UNIT) + 1
    spans, ids, starts, _, met, high, low, *pairs = (fields[at::width] for at in range(width))
    n, distinct = split_pair(np.fromiter(map(int, met), dtype=np.int64, count=len(tiles)))
    sums = map(total, map(int, high), map(int, low))
    # There are few combinations of counts: most tiles hold few events.
    combinations = [*zip(*pairs, strict=True)] if pairs else [()] * len(tiles)
    types = {combination: _by_type(combination, event_types) for combination in set(combinations)}
    blobs = map(encode_tile, n.tolist(), sums, distinct.tolist(), map(types.__getitem__, combinations))
    names = map(tile_field, spans, starts, repeat(part))
    return [_key(entity_id, keys) for entity_id in ids], zip(
        spans, starts, names, map(bytes.decode, blobs), strict=False
    )


def _by_type(pairs: Iterable[str], event_types: Sequence[str]) -> dict[str, int]:
    counts = (count for pair in pairs for count in split_pair(int(pair)))
    return {name: count for name, count in zip(event_types, counts, strict=False) if count}


def _key(entity_id: str, keys: Keys) -> str:
    """The hash of a user or an item, whose id is given as in the feed."""
    return (keys.user if entity_id[0] == OF_USER else keys.item)(unescape(entity_id[1:]))
