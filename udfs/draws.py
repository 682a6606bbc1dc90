"""The random numbers that new rows start with: taken back if their record diverged, and kept with the state."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np


class Draws:
    """Takes back the last numbers that the initialisers drew, so that a new row can be undone.

    A generator's state is dear to copy (some 30 us), so it is copied once in a while and what was drawn since
    is drawn again.
    """

    _EVERY = 1_000

    def __init__(self, initializers: Sequence[tuple[Any, int]]) -> None:
        self._initializers = initializers
        self.generators = [initializer._rng for initializer, _ in initializers]
        self.mark()

    def mark(self) -> None:
        self._states = [generator.get_state() for generator in self.generators]
        self._rows = 0

    def count(self, rows: int) -> None:
        """To be called before ``rows`` new rows are drawn."""
        if self._rows >= self._EVERY:
            self.mark()
        self._rows += rows

    def undo(self) -> None:
        """As if the last row had not been drawn."""
        self._rows -= 1
        for generator, state, (initializer, shape) in zip(
            self.generators, self._states, self._initializers, strict=True
        ):
            generator.set_state(state)
            for _ in range(self._rows):
                initializer(shape=shape)


def encode_generator(generator: np.random.RandomState) -> list[Any]:
    state: Any = generator.get_state(legacy=True)
    name, keys, position, has_gauss, cached = state
    return [name, base64.b64encode(keys.astype("<u4").tobytes()).decode(), int(position), int(has_gauss), float(cached)]


def decode_generator(generator: np.random.RandomState, state: list[Any]) -> None:
    name, keys, position, has_gauss, cached = state
    words = np.frombuffer(base64.b64decode(keys), dtype="<u4").astype(np.uint32)
    generator.set_state((name, words, position, has_gauss, cached))
