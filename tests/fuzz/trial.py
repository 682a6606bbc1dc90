"""Hostile lines through parser, intake and learner, as the job wires them, and what must hold of them."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import orjson

from tests.fuzz.hostile import CROWD, FUTURE, HEADER, Hostile, obvious
from udfs.batch import Batch
from udfs.building import build
from udfs.chunk import Chunk, Run
from udfs.events import REASONS, EventFormat, EventParser
from udfs.intake import Intake, IntakeConfig
from udfs.learner import Learner, LearnerConfig
from udfs.models import RowModel
from udfs.packing import unpack_lines
from udfs.tilefeed import OF_USER, RECORD, UNIT, TileConfig, TileFeed, split_pair, unescape

FORMAT: Final = EventFormat(future_bound=FUTURE)
INTAKE: Final = IntakeConfig(
    FORMAT, 1, True, True, 5_000, 60_000, TileConfig(("view", "rating"), 1_800_000, 300_000), ("file", "line"), "run", 7
)
MAX_WEIGHT: Final = 1e6
_COMPARED: Final = 5  # one line in so many is also parsed the slow way
_KEPT: Final = 2_000_000  # bytes of lines in a chunk


class Violation(AssertionError):
    """Something that must hold does not; the message says what, and of which line."""


def check(holds: bool, message: str) -> None:
    if not holds:
        raise Violation(message)


def make_model() -> RowModel:
    params = {"n_factors": 4, "latent_optimizer": "SGD", "latent_optimizer.lr": 0.05}
    return build("biased_mf", params, MAX_WEIGHT)


class Trial:
    """One intake and one learner, with the states that the job would keep of them; they can crash between chunks."""

    def __init__(
        self, seed: int, *, poison: float = 0.1, max_value: float = 5.0, model: Callable[[], RowModel] = make_model
    ) -> None:
        self.hostile = Hostile(seed, poison)
        self._make_model = model
        self.outcomes: Counter[str] = Counter()
        self.read = self.compared = self.of_crowd = self.fed = 0
        self.refused: dict[int, str] = {}  # reasons of lines that have a dead letter, by position
        self._line = 1
        self._config = replace(INTAKE, fmt=replace(FORMAT, max_value=max_value))
        self._parser = EventParser(self._config.fmt)
        self._intake_header: bytes | None = None
        self._learner_header: bytes | None = None
        self._blobs: dict[str, bytes] = {}
        self._rows: dict[tuple[str, str], bytes] = {}
        self._waiting: dict[int, bytes] = {}
        self._lines: dict[int, bytes] = {}  # that were accepted, while they wait
        self.crash()

    def crash(self) -> None:
        """Goes on from what is stored."""
        self.intake, self.learner = (
            Intake(self._config),
            Learner(LearnerConfig(run_id="run", seen=20), self._make_model()),
        )
        self.intake.restore(self._intake_header, self._blobs.items())
        rows = ((*key, blob) for key, blob in self._rows.items())
        self.learner.restore(self._learner_header, rows, self._waiting.items())

    def feed(self, count: int, *, csv: bool = False) -> int:
        """A chunk of up to ``count`` new lines; returns how many there were."""
        make, lines, size = self.hostile.csv_line if csv else self.hostile.json_line, [], 0
        while len(lines) < count and size < _KEPT:
            lines.append(make())
            size += len(lines[-1])
        self.put(lines, csv=csv)
        return len(lines)

    def put(self, lines: Sequence[bytes], *, csv: bool = False, ended: bool = False) -> None:
        first = self._line
        self._line += len(lines)
        # CSV and JSON take turns, so they are one log to the intake.
        headers = {"log": HEADER} if csv else {}
        chunk = Chunk([Run("log", first, len(lines))], lines, headers, ended)
        if not csv:
            self._compare(lines[::_COMPARED])
        result = self.intake.process(Chunk.decode(chunk.encode()), now=9)
        self._blobs |= result.puts
        for name in result.removes:
            del self._blobs[name]
        self._intake_header = self.intake.header
        usable = dict(enumerate(lines, first))
        self.read += sum(1 for line in lines if line.strip())
        self._check_letters(result.dead_letters, usable)
        accepted = self.intake.counts.accepted
        for feed in result.tile_feeds:
            self._check_feed(feed)
        check(self.fed == accepted, f"{accepted} events were accepted, the windows have {self.fed}")
        self._learn(Batch.decode(result.batches[0]), usable)
        self._balance()

    def _compare(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            expected = obvious(line, self._config.fmt.max_value) if len(line) < 10_000 and line.strip() else None
            if expected is not None:
                found: Any = self._parser.parse_json(line)
                if isinstance(expected, str):
                    found = found[0]
                check(found == expected, f"{line[:300]!r}: the parser says {found!r}, Python's json {expected!r}")
                self.compared += 1

    def _check_letters(self, letters: Sequence[str], lines: dict[int, bytes]) -> None:
        for text in letters:
            letter = orjson.loads(text)
            reason, position = letter["reason"], letter["position"]["line"]
            check(reason in REASONS and bool(letter["message"]), f"a dead letter without a reason: {text[:300]}")
            check(len(letter["message"]) < 500, f"a message of {len(letter['message'])} characters")
            raw = base64.b64decode(letter["raw"])
            check(raw == lines.pop(position, None), f"line {position} is not what its dead letter holds: {raw[:300]!r}")
            self.outcomes[reason] += 1
            self.refused[position] = reason

    def _check_feed(self, feed: TileFeed) -> None:
        for record in feed.tiles.split(RECORD):
            fields = record.split(UNIT)
            check(len(fields) == 6, f"a record for the windows has {len(fields)} fields: {record[:300]!r}")
            if fields[0][0] == OF_USER:
                events = split_pair(int(fields[2]))[0]
                self.of_crowd += events * (unescape(fields[0][1:]) == CROWD)
                self.fed += events

    def _learn(self, batch: Batch, lines: dict[int, bytes]) -> None:
        for position, raw in zip(batch.events.positions.tolist(), unpack_lines(batch.lines), strict=True):
            check(lines.get(position) == raw, f"line {position} is not what goes on with its event: {raw[:300]!r}")
            self._lines[position] = raw
        number = self.learner.batch_number
        for learned in self.learner.process(batch):
            self._check_letters(learned.dead_letters, self._lines)
            for family, rows in self.learner.encode(learned).items():
                self._check_weights(family, rows.weights, rows.heads)
                keys = ((family, row_id) for row_id in rows.row_ids)
                self._rows |= zip(keys, rows.blobs, strict=True)
        for finished in self.learner.finished_batches():
            self._waiting.pop(finished, None)
        waiting = self.learner.waiting_of(number)
        if waiting is not None:
            self._waiting[number] = waiting
        self._learner_header = self.learner.header()
        still = set(self.learner.waiting.positions.tolist())
        self._lines = {position: raw for position, raw in self._lines.items() if position in still}

    def _check_weights(self, family: str, weights: Any, heads: Any) -> None:
        check(bool(np.isfinite(weights).all()), f"a weight of a {family} is not finite")
        model = self.learner.model
        for part in (model.biases(family, weights), model.vectors(family, weights)):
            # What an optimiser keeps beside a weight may be larger.
            check(bool((np.abs(part) <= MAX_WEIGHT).all()), f"a weight of a {family} is beyond {MAX_WEIGHT:g}")
        check(family == "user" or bool(np.isfinite(heads["popularity"]).all()), "a popularity is not finite")
        check(abs(model.global_mean()) <= MAX_WEIGHT, "the global mean is beyond its bound")

    def _balance(self) -> None:
        counts, learner = self.intake.counts, self.learner
        parts = counts.accepted + sum(counts.rejected.values()) + counts.late + counts.duplicate
        check(counts.read == self.read == parts, f"{self.read} lines were read, the ledger has {counts}")
        done = learner.learned + learner.diverged + len(learner.waiting)
        check(counts.accepted == done, f"{counts.accepted} events were accepted, the learner knows of {done}")
        letters = sum(self.outcomes.values())
        check(letters == counts.read - counts.accepted + learner.diverged, f"{letters} dead letters do not balance")

    def finish(self) -> None:
        """The input ends, and all that is kept is looked at once more."""
        self.put([], ended=True)
        check(not len(self.learner.waiting) and not self._waiting, "events still wait after the end")
        self.crash()
        for family, rows in self.learner.encode(self.learner.everything()).items():
            self._check_weights(family, rows.weights, rows.heads)
            for row_id, blob in zip(rows.row_ids, rows.blobs, strict=True):
                check(self._rows[family, row_id] == blob, f"the row of {family} {row_id!r} is not what was stored")
        metrics = self.learner.summary()["metrics"]
        check(all(value is not None for value in metrics.values()), f"a metric is not finite: {metrics}")

    @property
    def rows(self) -> dict[tuple[str, str], bytes]:
        return self._rows
