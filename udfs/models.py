"""Models as the learner, the state and the publisher see them: families of rows, and a small header.

A model declares its families of rows, learns from interactions, and turns rows and header into bytes and back.
Nothing here knows a library: :mod:`udfs.rivermodels` and :mod:`udfs.plain` have River's models,
:mod:`udfs.building` their names.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from udfs.ids import Group, Ids

if TYPE_CHECKING:
    from udfs.ranking import Predicted, RankingConfig

Array = np.ndarray[Any, Any]
USER, ITEM = "user", "item"


class ModelError(ValueError):
    """A model can't be built as it is set; the message names the parameter and what is allowed."""


class Diverged(Exception):
    """Learning a record would have left a weight non-finite or out of bounds; the model is as before."""


@dataclass(frozen=True)
class Columns:
    """Where in the weights of a row lies what must be aligned before rows of several models are averaged.

    Attributes
    ----------
    bias
        The column of the bias; None without.
    vectors
        The first columns of all that turns with the factor space, each ``n_factors`` wide: the row's vector, and what
        an optimiser keeps beside it that is linear in the gradients.
    """

    bias: int | None
    vectors: tuple[int, ...]


class RowModel(ABC):
    """What a model must offer to live in the job.

    Attributes
    ----------
    name
        What the settings call it.
    families
        The names of its families of rows, such as ``("user", "item")``.
    n_factors
        Length of the vectors of a row; 0 without any.
    ids
        The ids that have rows, by family.
    """

    name: str
    families: tuple[str, ...]
    n_factors: int
    ids: Mapping[str, Ids]

    @abstractmethod
    def learn(
        self, users: Group, items: Group, ys: Array, times: Array | None = None
    ) -> tuple[Array, dict[int, Diverged]]:
        """Predicts and learns interactions with targets ``ys``, shape ``(n,)``, one after the other.

        Parameters
        ----------
        times
            In milliseconds, for models that look at them; all 0 by default.

        Returns
        -------
        The predictions made before learning, of the interactions that were learned; and for those that were not,
        by their places, why: the model is as if they had never been, bit for bit.
        """

    def step(self, user_id: str, item_id: str, y: float, time: int = 0) -> float:
        """:meth:`learn` of one interaction.

        Raises
        ------
        Diverged
            If a weight left its bound.
        """
        users, items = Group(self.ids[USER], [user_id]), Group(self.ids[ITEM], [item_id])
        predictions, diverged = self.learn(users, items, np.array([y], dtype="<f8"), np.array([time]))
        if diverged:
            raise diverged[0]
        return float(predictions[0])

    @abstractmethod
    def header(self) -> bytes: ...

    @abstractmethod
    def restore_header(self, blob: bytes) -> None: ...

    @abstractmethod
    def encode_rows(self, family: str, row_ids: Sequence[str], numbers: Array) -> Array:
        """All that the model keeps of rows, given by ids and numbers.

        Little-endian doubles: shape ``(len(row_ids), any)``, contiguous.
        """

    def encode_tails(self, family: str, numbers: Array) -> Sequence[bytes] | None:
        """What the model keeps of rows besides, for a model whose rows have no fixed size; None for all others."""
        return None

    @abstractmethod
    def decode_rows(self, family: str, row_ids: Sequence[str], blobs: Sequence[bytes]) -> None:
        """Puts rows as :meth:`encode_rows` and :meth:`encode_tails` gave them, one behind the other, into the model.

        Raises
        ------
        ValueError
            If the bytes do not fit the model's layout.
        """

    @abstractmethod
    def drop(self, family: str, row_ids: Sequence[str]) -> None:
        """Forgets rows and their numbers: an id that comes again is a new one.

        Raises
        ------
        KeyError
            If one of them has no row.
        """

    @abstractmethod
    def biases(self, family: str, weights: Array) -> Array:
        """The biases in what :meth:`encode_rows` gave: shape ``(len(weights),)``."""

    @abstractmethod
    def vectors(self, family: str, weights: Array) -> Array:
        """The vectors in what :meth:`encode_rows` gave: shape ``(len(weights), n_factors)``, or without
        columns where rows of the family have none."""

    def predicted(self, user_id: str) -> Array:
        """What readers of Redis take for the prediction of a user who is known and each item: shape
        ``(len(ids[ITEM].names),)``, by the items' numbers; whatever it is where a number is free. As if all rows were
        written now: what a stack publishes of a row also depends on its weights at the time."""
        ids, of_users = self.ids[ITEM], self.encode_rows(USER, [user_id], self.ids[USER].find([user_id]))
        row_ids = list(ids)
        numbers = ids.find(row_ids)
        of_items = self.encode_rows(ITEM, row_ids, numbers)
        predicted = np.zeros(len(ids.names))
        predicted[numbers] = self.biases(ITEM, of_items) + (self.global_mean() + self.biases(USER, of_users)[0])
        if self.n_factors:
            products = self.vectors(ITEM, of_items) * self.vectors(USER, of_users)
            predicted[numbers] += products.sum(axis=1)
        return predicted

    @abstractmethod
    def global_mean(self) -> float: ...

    @abstractmethod
    def columns(self, family: str) -> Columns:
        """How rows of several models are merged.

        Raises
        ------
        ModelError
            If they can't be: they hold more than weights and what is linear in the gradients.
        """

    @abstractmethod
    def pool(self, n: int, global_mean: float) -> None:
        """Takes ``global_mean`` for that of ``n`` records; nothing where the model has none."""

    def more_fields(self, family: str, weights: Array, tails: Sequence[bytes]) -> Mapping[str, Array | Sequence[bytes]]:
        """What readers of Redis get of rows besides bias and vector: by name of the field, bytes for each row in what
        :meth:`encode_rows` and :meth:`encode_tails` gave; or an array of rows, where all have as many."""
        return {}

    def to_publish(self) -> RowModel:
        """Who makes :meth:`biases`, :meth:`vectors` and :meth:`more_fields` of rows as this one does now, whatever it
        learns meanwhile: itself, where they follow from the rows alone."""
        return self

    def header_fields(self) -> Mapping[str, bytes | str | int]:
        """What readers of Redis get of the model besides its name and its global mean."""
        return {}


class RankingModel(RowModel):
    """A model of implicit feedback: it learns who met what at which time, and ranks items instead of rating them.

    An event may change the rows of other items, too. An item that was met keeps its row and its number.

    Attributes
    ----------
    rankers
        What is ranked by where it is evaluated: the model itself first.
    baselines
        Those of them that a recommender must beat.
    """

    rankers: Sequence[str]
    baselines: Sequence[str]

    def learn(
        self, users: Group, items: Group, ys: Array, times: Array | None = None
    ) -> tuple[Array, dict[int, Diverged]]:
        """Learns interactions, each at a time of its own by default; there are no predictions, and nothing diverges."""
        self.rank_then_learn(users, items, np.arange(len(ys)) if times is None else times, 0, None)
        return np.zeros(len(ys)), {}

    def biases(self, family: str, weights: Array) -> Array:
        """None: nothing is predicted."""
        return np.zeros(len(weights))

    @abstractmethod
    def rank_then_learn(
        self, users: Group, items: Group, times: Array, first: int, config: RankingConfig | None
    ) -> Predicted:
        """Ranks those interactions that are to be evaluated before it learns them; events of a user at one time are one
        group.

        Parameters
        ----------
        times
            In milliseconds, shape ``(n,)``, in order.
        first
            How many interactions were learned before.
        config
            What is evaluated, and how; None for nothing.
        """

    @abstractmethod
    def number(self, parts: Sequence[bytes]) -> Array:
        """The numbers of items in their stored rows: what is learned depends on them, so they get them again."""

    @abstractmethod
    def also_changed(self) -> Array:
        """The numbers of items whose rows have changed since this was last asked, besides those of the events."""
