"""How long look-ups take, while nothing is written and while a job writes as fast as it can.

    python -m benchmarks.lookups [--events 1000000] [--items 1250] [--calls 2000] [--set tiles.enabled=false]
    python -m benchmarks.lookups --items 100000 --set model=blend --set tiles.enabled=false [--max-age 5]

The state is that of a run over 20,000 users and 1,250 items, with windows and 16 factors. Look-ups are those of
``serving.Client``, one at a time, of ids that were learned, drawn evenly: a user, an item, the 10 best items for one,
the 10 most similar items. The last two keep the items in the client; what the first call takes is shown apart. Then the
job goes on with the generator at full rate over the same ids, and the same is asked again: each ranking first fetches
the items that changed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.common import progress, scratch, show, store, stream
from benchmarks.jobs import CLEAN, KEYS, finish, percentile, running
from flink_jobs.embedded import embedded_redis
from flink_jobs.settings import assignment
from serving import Client

_USERS, _K = 20_000, 10
_GENERATOR: Final[dict[str, Any]] = {
    **CLEAN,
    "generator.events": 10**12,
    "generator.users": _USERS,
    "generator.interval": 10,
}


def lookups(client: Client) -> dict[str, tuple[Callable[[str], Any], Sequence[str]]]:
    """Each look-up, and the ids that it may be given."""
    users, items = [f"u{n}" for n in range(_USERS)], sorted(client.known_items())
    return {
        "user": (client.user, users),
        "item": (client.item, items),
        f"recommend k={_K}": (lambda user_id: client.recommend(user_id, _K), users),
        f"similar k={_K}": (lambda item_id: client.similar(item_id, _K), items),
    }


def measure(client: Client, calls: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each look-up; the kinds take turns, so that all meet the same."""
    rng = np.random.default_rng(0)
    kinds = lookups(client)
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(calls + 1):
        for name, (look_up, ids) in kinds.items():
            row_id = ids[rng.integers(len(ids))]
            began = time.perf_counter()
            found = look_up(row_id)
            taken[name].append(1_000 * (time.perf_counter() - began))
            if found is None:
                raise RuntimeError(f"{row_id} is not known: give more --events")
    return {
        name: {
            "first": values[0],
            "p50": percentile(values[1:], 0.5),
            "p99": percentile(values[1:], 0.99),
            "max": max(values[1:]),
        }
        for name, values in taken.items()
    }


def table(what: str, figures: Mapping[str, Mapping[str, float]]) -> None:
    head = ("", "first", "p50", "p99", "max")
    show(
        f"look-ups, {what}, ms",
        [head, *((kind, *(f"{value:.2f}" for value in of.values())) for kind, of in figures.items())],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=1_250)
    parser.add_argument("--calls", type=int, default=2_000, help="of each kind")
    parser.add_argument("--max-age", type=float, default=0.0, help="of the client while a job writes")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the job")
    arguments = parser.parse_args()
    settings = dict(map(assignment, arguments.set))
    with scratch() as name:
        folder = Path(name).resolve()
        state = folder / "state"
        progress(f"learning {arguments.events:,} events")
        finish(state, f"file:{stream(folder, arguments.events, _USERS, arguments.items)}", settings)
        with embedded_redis(state / "redis") as url:
            progress("asking while nothing is written")
            idle = measure(Client(url, KEYS.prefix), arguments.calls)
            table("idle", idle)
            generator = {**_GENERATOR, "generator.items": arguments.items}
            with running(state, "generator", {**generator, **settings}) as (job, _):
                job.wait_for_learner()
                before = job.learned
                job.wait(lambda: job.learned > before + 200_000)
                progress("asking while a job writes")
                began, first = time.monotonic(), job.learned
                writing = measure(Client(url, KEYS.prefix, max_age=arguments.max_age), arguments.calls)
                rate = (job.learned - first) / (time.monotonic() - began)
    table(f"while a job learns {rate:,.0f} events/s", writing)
    store(
        "lookups",
        {
            "events": arguments.events,
            "items": arguments.items,
            "settings": arguments.set,
            "max_age": arguments.max_age,
            "idle": idle,
            "writing": writing,
            "rate": rate,
        },
    )


if __name__ == "__main__":
    main()
