"""The built-in stream: ratings with known truth, and a stated share of records that are not fit to be learned.

Every event is a function of the seed and of its number, so the stream is the same in any chunks and from any
position.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from udfs.chunk import Chunk, Run
from udfs.reading import decode_position, encode_position, stored_place
from udfs.requests import Place

BLOCK: Final = 1_000
_FIRST_EVENTS: Final = 1_000  # in a chunk
START: Final = 1_704_067_200_000  # 2024-01-01T00:00:00Z
SOURCE: Final = "generator"
_DRIFT: Final = 400_000.0  # events in which tastes turn by one radian
_LATE_BY: Final = 3_600_000
_MALFORMED: Final = (
    lambda line: line[: len(line) // 2],
    lambda line: line.replace('"user_id":', '"user":'),
    lambda line: line.replace('"event_value":', '"event_value":NaN,"was":'),
    lambda line: line.replace('"timestamp":', '"timestamp":"soon","was":'),
    lambda line: f"[{line}]",
    lambda line: line.replace('"item_id":"', '"item_id":1.5,"was":"'),
)


@dataclass(frozen=True)
class GeneratorConfig:
    """
    Attributes
    ----------
    events
        How many a run reads.
    rate
        Events a second of wall-clock time; 0 is as fast as it goes.
    interval
        Milliseconds of event time between events.
    users, items
        How many users are active at a time (they come and go), and how many items there are.
    churn
        Users that come, and that go, in 1,000 events; 0 keeps them all.
    malformed, duplicates, late
        Shares of the records.
    """

    events: int = 200_000
    seed: int = 1
    rate: float = 0.0
    interval: int = 1_000
    users: int = 2_000
    items: int = 500
    churn: int = 20
    malformed: float = 0.01
    duplicates: float = 0.01
    late: float = 0.01
    noise: float = 0.4


class Generator:
    """Makes events by number.

    The truth: ``3.5 + b_u + b_i + <p_u(t), q_i>``, where a user's taste ``p_u(t)`` turns slowly, plus noise,
    rounded to half stars in [0.5, 5].
    """

    _FACTORS = 4

    def __init__(self, config: GeneratorConfig) -> None:
        self.config = config
        rng = np.random.default_rng([config.seed, 0])
        self._population = 4 * config.users
        self._user_bias = rng.normal(0, 0.4, self._population)
        self._item_bias = rng.normal(0, 0.5, config.items)
        self._taste = rng.normal(0, 0.5, (2, self._population, self._FACTORS))
        self._item = rng.normal(0, 0.7, (config.items, self._FACTORS))
        weights = 1.0 / np.arange(1, config.items + 1) ** 0.8
        self._popularity = np.cumsum(rng.permutation(weights) / weights.sum())

    def truth(self, users: np.ndarray[Any, Any], items: np.ndarray[Any, Any], number: float) -> Any:
        """Expected rating before rounding; ``users`` and ``items`` are the numbers in the ids, of one shape."""
        turn = number / _DRIFT
        member = users % self._population
        taste = self._taste[0, member] * np.cos(turn) + self._taste[1, member] * np.sin(turn)
        return 3.5 + self._user_bias[member] + self._item_bias[items] + (taste * self._item[items]).sum(axis=-1)

    def block(self, number: int) -> list[bytes]:
        """The lines of events ``number * BLOCK`` to ``(number + 1) * BLOCK - 1``."""
        config = self.config
        rng = np.random.default_rng([config.seed, 1, number])
        first = number * BLOCK
        numbers = np.arange(first, first + BLOCK)
        # The active users are a window that moves, and those about to leave are the most active.
        newcomers = number * config.churn
        users = newcomers + (config.users * rng.random(BLOCK) ** (2 if config.churn else 1)).astype(int)
        items = np.minimum(np.searchsorted(self._popularity, rng.random(BLOCK)), config.items - 1)
        ratings = self.truth(users, items, float(first)) + rng.normal(0, config.noise, BLOCK)
        ratings = np.clip(np.round(ratings * 2) / 2, 0.5, 5.0)
        times = START + numbers * config.interval - rng.integers(0, 4_000, BLOCK)
        fate = rng.random(BLOCK)
        late = config.malformed + config.duplicates + config.late
        times = np.where((fate >= config.malformed + config.duplicates) & (fate < late), times - _LATE_BY, times)
        lines: list[bytes] = []
        for k, (n, u, i, r, t, f) in enumerate(
            zip(numbers.tolist(), users.tolist(), items.tolist(), ratings.tolist(), times.tolist(), fate, strict=True)
        ):
            if k and config.malformed <= f < config.malformed + config.duplicates:
                lines.append(lines[-1])
                continue
            line = (
                f'{{"event_id":"g{n}","user_id":"u{u}","item_id":"i{i}","event_type":"rating",'
                f'"event_value":{r},"timestamp":{t}}}'
            )
            if f < config.malformed:
                line = _MALFORMED[n % len(_MALFORMED)](line)
            lines.append(line.encode())
        return lines


class GeneratorFeed:
    """The generator as a feed: each run reads ``config.events`` more."""

    def __init__(
        self,
        config: GeneratorConfig,
        run_id: str,
        chunk_events: int = 16_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._generator = Generator(config)
        self._run_id = run_id
        self._chunk_events = chunk_events
        self._size = min(_FIRST_EVENTS, chunk_events)
        self._clock = clock
        self._block: tuple[int, list[bytes]] = (-1, [])
        self.ended = False

    def seek(self, position: bytes | None) -> None:
        stored: dict[str, Any] = {"next": 0, "until": 0, "ended": True, "run_id": ""}
        if position is not None:
            stored = decode_position(position)
        self._inputs = stored_place(stored).inputs
        self._next, self._until = stored["next"], stored["until"]
        self.ended = stored["ended"] and stored["run_id"] == self._run_id
        if stored["ended"] and not self.ended:
            self._until = self._next + self._config.events
        self._start = (self._clock(), self._next)

    def position(self) -> bytes:
        stored = {"next": self._next, "until": self._until, "ended": self.ended, "run_id": self._run_id}
        return encode_position({**stored, **self.place._asdict()})

    @property
    def place(self) -> Place:
        return Place(self._inputs, self._next)

    def pause(self) -> int:
        return 100 if self._config.rate else 0

    def read(self, limit: int | None = None) -> Chunk | None:
        first = self._next
        stop = min(self._until, first + (self._size if limit is None else min(limit, self._size)))
        # Small at first, so that something is learned soon; then large, which costs less.
        self._size = min(2 * self._size, self._chunk_events)
        if self._config.rate:
            began, at = self._start
            stop = min(stop, at + int((self._clock() - began) * self._config.rate))
        if first < self._until and stop <= first:
            return None
        lines: list[bytes] = []
        while first + len(lines) < stop:
            number = first + len(lines)
            if self._block[0] != number // BLOCK:
                self._block = (number // BLOCK, self._generator.block(number // BLOCK))
            lines += self._block[1][number % BLOCK : number % BLOCK + stop - number]
        self._next = stop
        self.ended = not lines
        self._inputs += self.ended
        return Chunk([Run(SOURCE, first, len(lines))], lines, ended=self.ended)
