"""The unit of comparison: ``orjson.loads; predict_one; learn_one`` over a file, and nothing else.

    python -m benchmarks.rivals.plain_loop FILE --redis URL [--limit 500000]

Redis only gets a note of the times, when all is learned.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.common import plain_loop
from benchmarks.rivals.shared import clock, note, now
from serving.connection import connect


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--redis", required=True)
    parser.add_argument("--limit", type=int)
    arguments = parser.parse_args()
    with arguments.file.open("rb") as file:
        lines = sum(1 for _ in file)
    connection = connect(arguments.redis)
    began = now()
    plain_loop(arguments.file, arguments.limit)
    note(connection, 0, began, lines if arguments.limit is None else min(lines, arguments.limit))
    print(clock(connection))


if __name__ == "__main__":
    main()
