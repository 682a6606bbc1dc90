"""Models as the learner, the state and the publisher see them: families of rows, and a small header.

A model declares its families of rows, learns from one interaction, and turns rows and header into bytes and
back. Nothing here knows a library: :mod:`udfs.rivermodels` has River's models, :mod:`udfs.building` their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]
USER, ITEM = "user", "item"


class ModelError(ValueError):
    """A model can't be built as it is set; the message names the parameter and what is allowed."""


class Diverged(Exception):
    """Learning a record would have left a weight non-finite or out of bounds; the model is as before."""


class RowModel(Protocol):
    """What a model must offer to live in the job.

    Attributes
    ----------
    name
        What the settings call it.
    families
        The names of its families of rows, such as ``("user", "item")``.
    n_factors
        Length of the vectors of a row; 0 without any.
    """

    name: str
    families: tuple[str, ...]
    n_factors: int

    def step(self, user_id: str, item_id: str, y: float) -> float:
        """Predicts, then learns one interaction; returns the prediction made before learning.

        Raises
        ------
        Diverged
            If a weight left its bound; the model is then as it was before, bit for bit.
        """

    def header(self) -> bytes: ...

    def restore_header(self, blob: bytes) -> None: ...

    def encode_rows(self, family: str, row_ids: Sequence[str]) -> Array:
        """All that the model keeps of rows, as little-endian doubles: shape ``(len(row_ids), any)``, contiguous."""

    def decode_row(self, family: str, row_id: str, blob: bytes) -> None:
        """Puts the bytes of a row that :meth:`encode_rows` gave into the model.

        Raises
        ------
        ValueError
            If the bytes do not fit the model's layout.
        """

    def biases(self, family: str, rows: Array) -> Array:
        """The biases in rows that :meth:`encode_rows` gave: shape ``(len(rows),)``."""

    def vectors(self, family: str, rows: Array) -> Array:
        """The vectors in rows that :meth:`encode_rows` gave: shape ``(len(rows), n_factors)``."""

    def global_mean(self) -> float: ...
