"""What Flink starts in place of a Python worker: it asks the nursery for one, and waits for its end.

Run by path, isolated and without site packages: it is up in a few milliseconds.
"""

import json
import os
import socket
import sys


def main() -> int:
    address, *arguments = sys.argv[1:]
    request = {"argv": arguments, "env": dict(os.environ), "cwd": os.getcwd()}  # noqa: PTH109 - pathlib takes as long to import as all the rest
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(address)
            connection.sendall(len(body := json.dumps(request).encode()).to_bytes(4, "big"))
            connection.sendall(body)
            socket.send_fds(connection, [b"\0"], [1, 2])
            # The worker holds the other end as long as it lives, and says nothing unless it ends well.
            return 0 if connection.recv(1) == b"\0" else 1
        except OSError as error:
            print(f"no worker: {address} does not answer: {error}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
