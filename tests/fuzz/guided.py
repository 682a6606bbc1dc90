"""Looks for lines that break the parser, guided by coverage: ``python -m tests.fuzz.guided [OPTIONS] FOLDER``.

It needs atheris, whose options it takes; the folder gets the lines it begins with and those it finds.
"""

from __future__ import annotations

import sys
from pathlib import Path

_SEEDS = 300


def main() -> None:
    import atheris

    with atheris.instrument_imports(include=["udfs.events"]):
        from udfs.events import REASONS, EventParser, Rejected

    from tests.fuzz.hostile import HEADER, Hostile, obvious
    from tests.fuzz.trial import FORMAT, check

    parser = EventParser(FORMAT)

    def one_input(line: bytes) -> None:
        line = line.replace(b"\n", b" ")
        found = parser.parse_json(line)
        for result in (found, parser.parse_csv(line, HEADER)):
            if isinstance(result, Rejected):
                check(result.reason in REASONS, f"{line!r}: {result}")
        expected = obvious(line, FORMAT.max_value)
        if expected is not None:
            check((found[0] if isinstance(expected, str) else found) == expected, f"{line!r}: {found} and {expected}")

    hostile = Hostile(0, poison=0.5)
    for number in range(_SEEDS):
        (Path(sys.argv[-1]) / str(number)).write_bytes(hostile.csv_line() if number % 3 == 0 else hostile.json_line())
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
