"""A catalogue in a file: what is known of items besides events, kept in Redis with the item."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from serving.schema import Field, Keys
from udfs.catalogue import stored_entry
from udfs.reading import InputError, format_of, open_lines

_BATCH: Final = 2_000


def load_catalogue(path: Path, connection: Any, keys: Keys) -> tuple[int, int]:
    """Writes each item's line to its hash; returns how many were written, and how many lines can't be used.

    A line is a JSON object, or a row of a CSV with a header, with an ``item_id`` and any other fields.

    Raises
    ------
    InputError
        If there is no such file, or it is of no known format, or not CSV.
    """
    written = skipped = 0
    pipe = connection.pipeline(transaction=False)
    for entry in _entries(path):
        stored = stored_entry(entry)
        if stored is None:
            skipped += 1
            continue
        item_id, value = stored
        pipe.hset(keys.item(item_id), Field.CATALOGUE, value)
        written += 1
        if written % _BATCH == 0:
            pipe.execute()
    pipe.execute()
    return written, skipped


def _entries(path: Path) -> Iterator[dict[str, Any] | None]:
    if not path.is_file():
        raise InputError(f"--items: there is no file {path}")
    kind = format_of(path)
    if kind is None:
        raise InputError(f"--items: {path} ends in none of .jsonl, .csv, .jsonl.gz, .csv.gz")
    with open_lines(path) as file:
        lines = (line.removeprefix(b"\xef\xbb\xbf") for line in file if line.strip())
        if kind == "csv":
            try:
                for row in csv.DictReader(line.decode(errors="replace") for line in lines):
                    yield None if None in row else row  # more columns than the header
            except csv.Error as error:
                raise InputError(f"--items: {path} is not CSV: {error}") from error
            return
        for line in lines:
            try:
                entry = orjson.loads(line)
            except orjson.JSONDecodeError:
                entry = None
            yield entry if isinstance(entry, dict) else None
