"""A count that one process adds to while another one reads it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from udfs.names import File

_LOG: Final = logging.getLogger("freshet")


class Tally:
    """A file that has a byte for each time that something happened.

    Metrics leave a Python worker when it has done an element. Who waits within one, for Redis, counts here, and who
    does not wait reports. The count outlives both.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     waiting, reporting = Tally(Path(folder) / "retries"), Tally(Path(folder) / "retries")
    ...     waiting.add()
    ...     reporting.count
    1
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def of_retries(cls, journal: Path) -> Tally:
        """Of tries that Redis did not take, in the folder of a journal."""
        return cls(journal.with_name(File.RETRIES))

    def forget(self) -> None:
        """Begins again at 0."""
        self._path.unlink(missing_ok=True)

    def add(self) -> None:
        """Counts one more. That it can't be counted is logged: who counts has other troubles just then."""
        try:
            with self._path.open("ab", buffering=0) as file:
                file.write(b".")
        except OSError as error:
            _LOG.warning("%s can't be written: %s", self._path, error)

    @property
    def count(self) -> int:
        """How often it happened."""
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0
