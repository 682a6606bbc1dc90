"""Models whose rows lie in a table a family, by the numbers of their ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from udfs.models import ITEM, USER, Array
from udfs.rivermodels import ModelKind, RiverRanker


class TableRanker(RiverRanker):
    """A River recommender whose weights are not the River object's, but lie in tables.

    The River object gives parameters, initial weights and the header. A group takes the rows it meets out of the tables
    and puts them back when it is done, so that what is far apart in memory is fetched once, and by numpy.
    """

    def __init__(self, name: str, kind: ModelKind, create: Callable[[], Any], max_weight: float) -> None:
        super().__init__(name, kind, create, max_weight)
        # By number, in the columns of a stored row; longer than there are rows.
        self._tables = {family: np.zeros((1_024, sum(self._widths[family])), dtype="<f8") for family in self.families}

    def _fitting(self, family: str) -> Array:
        """The table of a family, with a place for each number."""
        table, needed = self._tables[family], len(self.ids[family].names)
        if needed > len(table):
            larger = np.zeros((max(needed, 2 * len(table)), table.shape[1]), dtype="<f8")
            larger[: len(table)] = table
            table = self._tables[family] = larger
        return table

    def encode_rows(self, family: str, row_ids: Sequence[str], numbers: Array) -> Array:
        return self._tables[family].take(numbers, axis=0)

    def decode_rows(self, family: str, row_ids: Sequence[str], blobs: Sequence[bytes]) -> None:
        self._check_sizes(family, row_ids, blobs)
        numbers, table = self.ids[family].add(row_ids), self._fitting(family)
        table[numbers] = np.frombuffer(b"".join(blobs), dtype="<f8").reshape(len(blobs), table.shape[1])

    def predicted(self, user_id: str) -> Array:
        from udfs import kernels  # here, as numba takes half a second to import

        user = self._tables[USER][self.ids[USER][user_id]][None]
        items = self._tables[ITEM][: len(self.ids[ITEM].names)]
        predicted: Array = self.biases(ITEM, items) + (self.global_mean() + self.biases(USER, user)[0])
        kernels.add_products(items, self._vector_at[ITEM], self.vectors(USER, user)[0], predicted)
        return predicted

    def river(self) -> Any:
        model = super().river()
        for family, columns in self._columns_of(model).items():
            table, at = self._tables[family], 0
            for (place, is_vector), width in zip(columns, self._widths[family], strict=True):
                for row_id, number in self.ids[family].items():
                    place[row_id] = table[number, at : at + width].copy() if is_vector else float(table[number, at])
                at += width
        return model
