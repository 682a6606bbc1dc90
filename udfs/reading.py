"""Reading bounded logs that live in files, in one order and from any position.

A folder is merged by time: Flink's own file source hands out files in no order, and was seen to lose half of
the events as late.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import heapq
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import orjson

from udfs.chunk import Chunk, Run
from udfs.events import TIMESTAMP, EventFormat, EventParser, Rejected
from udfs.requests import Place
from udfs.seal import check_layout, seal, unseal

_BOM: Final = b"\xef\xbb\xbf"
_HEAD: Final = 1_024
_FIRST_BYTES: Final = 250_000
FORMATS: Final = ("jsonl", "csv")
LAYOUT: Final = 1


class Feed(Protocol):
    """A bounded log with a position."""

    ended: bool

    def seek(self, position: bytes | None) -> None:
        """Goes on where :meth:`position` was taken; None is the beginning. Called once, first.

        Raises
        ------
        ValueError
            If the position is damaged, or of a newer layout.
        """

    def read(self, limit: int | None = None) -> Chunk | None:
        """The next chunk, of at most ``limit`` lines; the last one says so. None: nothing is due yet."""

    def position(self) -> bytes:
        """Where the next chunk begins."""

    @property
    def place(self) -> Place:
        """The same, as it can be compared: it does not depend on how the lines before were cut into chunks."""

    def pause(self) -> int:
        """Milliseconds to wait before the next :meth:`read`."""


def stored_place(position: Mapping[str, Any]) -> Place:
    """The place in what a feed stores as its position; one of before there were places is as good as a beginning."""
    return Place(position.get("inputs", 0), position.get("lines", 0))


class IdleFeed:
    """A feed that gives nothing: the job stands by with the state that it has."""

    ended = False

    def seek(self, position: bytes | None) -> None:
        self._position = position or b""

    def read(self, limit: int | None = None) -> None:
        return None

    def position(self) -> bytes:
        return self._position

    @property
    def place(self) -> Place:
        return stored_place(decode_position(self._position) if self._position else {})

    def pause(self) -> int:
        return 1_000


def encode_position(stored: dict[str, Any]) -> bytes:
    """A feed's position as it is stored."""
    return seal("position", orjson.dumps({"layout": LAYOUT, **stored}))


def decode_position(position: bytes) -> dict[str, Any]:
    """
    Raises
    ------
    ValueError
        If the position is damaged, or of a newer layout.
    """
    stored: dict[str, Any] = orjson.loads(unseal("the reader's", "position", position))
    check_layout("the reader's position", stored["layout"], LAYOUT)
    return stored


class InputError(ValueError):
    """An input can't be read; the message names it and what would help."""


def input_files(path: Path) -> list[tuple[Path, str]]:
    """The files of an input and their formats: the file itself, or those in the folder, by name.

    Raises
    ------
    InputError
        If there is none.
    """
    if path.is_dir():
        found = [(p, f) for p in sorted(path.iterdir()) if p.is_file() and (f := format_of(p)) is not None]
        if not found:
            raise InputError(f"the folder {path} has no file that ends in .jsonl, .csv, .jsonl.gz or .csv.gz")
        for file, _ in found:
            _check_name(file)
        return found
    if not path.is_file():
        raise InputError(f"there is no file or folder {path}")
    _check_name(path)
    return [(path, format_of(path) or "")]


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"the name {str(path)!r} is not UTF-8, as positions are written: rename it") from error


def format_of(path: Path) -> str | None:
    """
    >>> format_of(Path("a.csv.gz")), format_of(Path("a.txt"))
    ('csv', None)
    """
    name = path.name.removesuffix(".gz")
    return next((f for f in FORMATS if name.endswith(f".{f}")), None)


def open_lines(path: Path) -> BinaryIO:
    """The file's bytes, unpacked where its name ends in ``.gz``."""
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]


def without_terminator(line: bytes) -> bytes:
    """
    >>> without_terminator(b"a\\r\\n"), without_terminator(b"a\\n"), without_terminator(b"a")
    (b'a', b'a', b'a')
    """
    if line.endswith(b"\n"):
        line = line[:-1]
    return line.removesuffix(b"\r")


def without_terminators(lines: Sequence[bytes]) -> list[bytes]:
    """
    >>> without_terminators([b"a\\n", b"\\r\\n", b"\\n", b"b"]), without_terminators([b"a\\n"]), without_terminators([])
    ([b'a', b'', b'', b'b'], [b'a'], [])
    """
    text = b"".join(lines)
    if b"\r" in text:
        return [without_terminator(line) for line in lines]
    # All but the last line end in a line feed, and have no other.
    stripped = text.split(b"\n")
    return stripped if len(stripped) == len(lines) else stripped[:-1]


def columns(path: Path, first: bytes) -> list[str]:
    """The column names in the first line of a CSV file.

    >>> columns(Path("a.csv"), b'user_id,"item, id"\\r\\n')
    ['user_id', 'item, id']

    Raises
    ------
    InputError
        If it is not a line of CSV.
    """
    try:
        return next(csv.reader([without_terminator(first).decode(errors="replace")]), [])
    except csv.Error as error:
        raise InputError(
            f"{path}: the first line is not a CSV header ({error}); it should name the columns, and lines should end "
            "in a line feed"
        ) from error


@dataclass
class _File:
    """One file of the feed, as far as it is read."""

    path: Path
    format: str
    offset: int = 0
    line: int = 1
    newest: int = 0
    fingerprint: str = ""
    header: list[str] | None = None
    stream: BinaryIO | None = None
    done: bool = False

    def open(self, stored: dict[str, Any] | None) -> None:
        """Opens the file at its stored position, or at its beginning if it is another file by now."""
        self.stream = open_lines(self.path)
        head = self.stream.read(_HEAD)
        if stored is not None and _fingerprint(head[: stored["head"]]) == stored["fingerprint"]:
            self.offset, self.line, self.newest = stored["offset"], stored["line"], stored["newest"]
        self.fingerprint, self.head = _fingerprint(head), len(head)
        start = len(_BOM) if head.startswith(_BOM) else 0
        self.stream.seek(start)
        if self.format == "csv":
            self.header = columns(self.path, self.stream.readline())
            if self.line == 1:
                self.offset, self.line = self.stream.tell(), 2
        self.offset = max(self.offset, start)
        self.stream.seek(self.offset)

    def read(self, size: int) -> list[bytes]:
        """Whole lines of about ``size`` bytes; none at the end."""
        assert self.stream is not None
        lines = self.stream.readlines(size)
        if not lines:
            self.done = True
            self.stream.close()
        return lines

    def advance(self, lines: Sequence[bytes]) -> None:
        self.offset += sum(map(len, lines))
        self.line += len(lines)

    def go_back(self) -> None:
        """Reads again what :meth:`read` gave and :meth:`advance` did not pass."""
        assert self.stream is not None
        self.stream.seek(self.offset)

    def stored(self) -> dict[str, Any]:
        return {
            "offset": self.offset,
            "line": self.line,
            "newest": self.newest,
            "fingerprint": self.fingerprint,
            "head": self.head,
        }


def _fingerprint(head: bytes) -> str:
    return hashlib.blake2b(head, digest_size=8).hexdigest()


class FileFeed:
    """Reads files as one log.

    A single file is read in its order. Several are merged by time: each keeps its own order, and the line
    whose file has come least far in time is next. A line's place in time is the highest usable timestamp of
    its file up to it, so that disorder within a file, and lines that can't be used, stay where they are.

    Parameters
    ----------
    files
        Paths and formats.
    fmt
        To read the timestamps when several files are merged.
    run_id
        An input that has ended stays ended for this run; another run reads what has been added since.
    chunk_bytes
        How much is read at once, roughly.
    """

    def __init__(
        self, files: Sequence[tuple[str, str]], fmt: EventFormat, run_id: str, chunk_bytes: int = 16_000_000
    ) -> None:
        self._files = [_File(Path(path), format_) for path, format_ in files]
        self._parser = EventParser(fmt)
        self._run_id = run_id
        self._chunk_bytes = chunk_bytes
        self._size = min(chunk_bytes, _FIRST_BYTES)
        self._other: dict[str, Any] = {}
        self._heap: list[tuple[int, int, list[bytes], int]] = []
        self.place = Place(0, 0)
        self.ended = False

    def seek(self, position: bytes | None) -> None:
        stored: dict[str, Any] = {"files": {}, "ended": False, "run_id": ""}
        if position is not None:
            stored = decode_position(position)
        self.place = stored_place(stored)
        self._other = stored["files"]
        self.ended = stored["ended"] and stored["run_id"] == self._run_id
        for file in self._files:
            file.open(self._other.get(str(file.path)))
        if len(self._files) > 1:
            for number in range(len(self._files)):
                self._push(number)

    def position(self) -> bytes:
        files = {**self._other, **{str(file.path): file.stored() for file in self._files}}
        stored = {"files": files, "ended": self.ended, "run_id": self._run_id}
        return encode_position({**stored, **self.place._asdict()})

    def pause(self) -> int:
        return 0

    def read(self, limit: int | None = None) -> Chunk:
        # Small at first, so that something is learned soon; then large, which costs less.
        self._size = min(2 * self._size, self._chunk_bytes)
        runs, lines = self._merged(limit) if len(self._files) > 1 else self._single(limit)
        headers = {str(f.path): f.header for f in self._files if f.header is not None}
        self.ended = not lines
        self.place = Place(self.place.inputs + self.ended, self.place.lines + len(lines))
        return Chunk(runs, lines, headers, ended=self.ended)

    def _single(self, limit: int | None) -> tuple[list[Run], list[bytes]]:
        file = self._files[0]
        lines = file.read(self._size)
        cut = limit is not None and limit < len(lines)
        lines = lines[:limit]
        run = Run(str(file.path), file.line, len(lines))
        file.advance(lines)
        if cut:
            file.go_back()
        return [run], without_terminators(lines)

    def _merged(self, limit: int | None) -> tuple[list[Run], list[bytes]]:
        runs: list[Run] = []
        taken: list[bytes] = []
        size = 0
        while self._heap and size < self._size and (limit is None or len(taken) < limit):
            _, number, lines, at = heapq.heappop(self._heap)
            file, line = self._files[number], lines[at]
            source = str(file.path)
            if runs and runs[-1].source == source and runs[-1].first + runs[-1].count == file.line:
                runs[-1] = Run(source, runs[-1].first, runs[-1].count + 1)
            else:
                runs.append(Run(source, file.line, 1))
            taken.append(without_terminator(line))
            size += len(line)
            file.newest = self._time(file, line)
            file.advance([line])
            self._push(number, lines, at + 1)
        return runs, taken

    def _push(self, number: int, lines: list[bytes] | None = None, at: int = 0) -> None:
        """Queues a file's next line."""
        file = self._files[number]
        if lines is None or at == len(lines):
            lines, at = file.read(self._chunk_bytes // len(self._files)), 0
        if lines:
            heapq.heappush(self._heap, (self._time(file, lines[at]), number, lines, at))

    def _time(self, file: _File, line: bytes) -> int:
        line = without_terminator(line)
        event = self._parser.parse_json(line) if file.header is None else self._parser.parse_csv(line, file.header)
        return file.newest if type(event) is Rejected else max(file.newest, event[TIMESTAMP])


# How densely events follow each other is sampled so often at most, over so many bytes.
_SAMPLES: Final = 64
_SAMPLED_BYTES: Final = 256_000_000


def peak_density(files: Sequence[tuple[str, str]], fmt: EventFormat) -> float:
    """Events a millisecond of event time where the input is densest, estimated from samples.

    It only decides how much is gathered at once, never what comes out. Files that are read side by side add up.
    Infinite where the samples show no time passing.
    """
    return sum(_density(Path(path), kind, EventParser(fmt)) for path, kind in files)


def _density(path: Path, kind: str, parser: EventParser) -> float:
    with open_lines(path) as stream:
        first = stream.readline().removeprefix(_BOM)
        header = columns(path, first) if kind == "csv" else None
        packed = path.suffix == ".gz"
        step = max(_SAMPLED_BYTES // 1_024 if packed else path.stat().st_size // _SAMPLES, 1)
        samples: list[tuple[int, int]] = []  # bytes before a line, and its time
        lines = size = at = 0
        while at < (_SAMPLED_BYTES if packed else path.stat().st_size):
            stream.seek(at)
            stream.readline()
            for line in stream.readlines(4_096):
                lines, size = lines + 1, size + len(line)
                text = without_terminator(line)
                event = parser.parse_json(text) if header is None else parser.parse_csv(text, header)
                if type(event) is not Rejected:
                    samples.append((at, event[TIMESTAMP]))
                    break
            else:
                if not stream.read(1):
                    break
            at += step
    gaps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(samples)]
    line_bytes = size / lines if lines else 1.0
    rates = [passed / line_bytes / time for passed, time in gaps if time > 0]
    return max(rates, default=float("inf"))
