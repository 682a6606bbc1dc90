"""Which model ``auto`` stands for: told by what the first events of the source carry, and from then on by the state."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Final

from rich.console import Console

from flink_jobs.kafka import Kafka, first_values
from flink_jobs.preparing import Ready, event_format, fixed_settings
from flink_jobs.settings import AUTO, Resolved, SettingsError
from udfs.building import BLEND, STACK
from udfs.events import EventParser
from udfs.generator import GeneratorConfig, GeneratorFeed
from udfs.reading import Feed, FileFeed

_EVENTS: Final = 1_000  # that are looked at
_RECORDS: Final = 10_000  # among which they must be
_CHUNK_BYTES: Final = 1_000_000

# Lines without their terminators, and the header that they have where they are CSV.
Lines = tuple[Sequence[bytes], Sequence[str] | None]


def chosen(ready: Ready, files: Sequence[tuple[str, str]], kafka: Kafka | None, console: Console) -> Ready:
    """The same, with a model where the settings leave that open and there is no state to tell.

    Raises
    ------
    SettingsError
        If the source tells nothing, or the settings do not suit the model.
    InputError
        If it can't be read.
    """
    resolved = ready.resolved
    if resolved.model_name != AUTO:
        return ready
    parser = EventParser(event_format(resolved, ready.manifest))
    with contextlib.closing(_first_lines(resolved, files, kafka, parser)) as lines:
        types = list(islice(types_of(lines, parser), _EVENTS))
    if not types:
        raise SettingsError(
            f"model.name: {AUTO} is told by the first events of the source, and {resolved.settings.source} has none "
            f"that can be used: say --model {BLEND}, for views, clicks and purchases, or --model {STACK}, for ratings"
        )
    name = model_for(types)
    console.print(
        f"model: {name}, as {types.count('rating'):,} of the first {len(types):,} events are ratings", highlight=False
    )
    resolved = resolved.with_model(name)
    return replace(ready, resolved=resolved, manifest=replace(ready.manifest, fixed=fixed_settings(resolved)))


def model_for(types: Sequence[str]) -> str:
    """
    >>> model_for(["rating", "view", "rating"]), model_for(["rating", "purchase"])
    ('stack', 'blend')
    """
    return STACK if 2 * types.count("rating") > len(types) else BLEND


def types_of(lines: Iterable[Lines], parser: EventParser) -> Iterator[str]:
    """The types of the events among the first ``_RECORDS``."""
    left = _RECORDS
    for some, header in lines:
        events, _ = parser.parse_lines(some[:left], header)
        yield from (event.event_type for event in events)
        left -= len(some)
        if left <= 0:
            return


def _first_lines(
    resolved: Resolved, files: Sequence[tuple[str, str]], kafka: Kafka | None, parser: EventParser
) -> Generator[Lines]:
    if kafka is not None and kafka.source is not None:
        with contextlib.closing(first_values(kafka, _EVENTS)) as parts:
            for values in parts:
                yield values, None
        return
    generator = GeneratorConfig(**resolved.settings.generator.model_dump() | {"rate": 0.0})
    feed: Feed = FileFeed(files, parser.format, AUTO, _CHUNK_BYTES) if files else GeneratorFeed(generator, AUTO)
    feed.seek(None)
    while not feed.ended and (chunk := feed.read(_EVENTS)) is not None:
        start = 0
        for run in chunk.runs:
            yield chunk.lines[start : start + run.count], chunk.headers.get(run.source)
            start += run.count
