"""How long it takes to write all learned state to Redis again.

    python -m benchmarks.republish [--users 1000000 --events 3000000]

Redis is wiped and ``freshet republish`` called: once when the job is stopped, once while it runs. The seconds are
those of the whole command, with the start of Python and, where the job is stopped, of Flink.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import N_FACTORS, progress, run_job, scratch, show, store, stream
from flink_jobs.embedded import embedded_redis
from serving.connection import connect
from serving.schema import Keys

_KEYS = Keys("freshet")
_FRESHET = str(Path(sys.executable).parent / "freshet")


def republish(options: list[str], connection: object) -> tuple[int, float]:
    """Wipes Redis; returns how many users and items are in it again, and the seconds."""
    connection.flushall()  # type: ignore[attr-defined]
    began = time.monotonic()
    subprocess.run([_FRESHET, "republish", *options], check=True, stdout=subprocess.DEVNULL)
    seconds = time.monotonic() - began
    found = connection.hmget(_KEYS.model(0), "users", "items")  # type: ignore[attr-defined]
    return sum(map(int, found)), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=1_000_000)
    parser.add_argument("--events", type=int, default=3_000_000)
    arguments = parser.parse_args()
    with scratch() as name:
        folder = Path(name).resolve()
        progress(f"learning {arguments.events:,} events")
        log = stream(folder, arguments.events, arguments.users, 100_000)
        run_job(log, folder, **{"tiles__enabled": "false"})
        common = ["--state-dir", str(folder / "state"), "--set", f"model.n_factors={N_FACTORS}"]
        common += ["--set", "tiles.enabled=false", "--source", "generator", "--set", "generator.rate=50"]
        with embedded_redis(folder / "state" / "redis") as url:
            connection = connect(url, timeout=60.0)
            progress("stopped")
            stopped = republish(common, connection)
            progress("running")
            job = subprocess.Popen([_FRESHET, "run", *common], stdout=subprocess.DEVNULL)
            while connection.hget(_KEYS.ledger, "published_at") is None or job.poll() is not None:
                time.sleep(0.1)
            time.sleep(20)  # until it has restored its state
            running = republish(common, connection)
            job.terminate()
            job.wait()
    rows = [("", "users and items", "seconds", "a second")]
    rows += [
        (what, f"{count:,}", f"{seconds:.1f}", f"{count / seconds:,.0f}")
        for what, (count, seconds) in (("job stopped", stopped), ("job running", running))
    ]
    show("freshet republish", rows)
    store("republish", {"stopped": stopped, "running": running})


if __name__ == "__main__":
    main()
