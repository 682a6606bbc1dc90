"""Which model ``auto`` stands for: by the first events of the source, or by the state."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import orjson
import pytest
from rich.console import Console

from flink_jobs.choosing import chosen
from flink_jobs.preparing import Ready, as_learned, files_of, fixed_settings, folder_of
from flink_jobs.settings import Layer, Resolved, SettingsError, resolve
from flink_jobs.state import Manifest
from serving.schema import Keys


def events(kind: str | None, n: int, first: int = 0, **more: Any) -> list[bytes]:
    typed = {} if kind is None else {"event_type": kind}
    return [
        orjson.dumps({"user_id": f"u{at}", "item_id": "i", "timestamp": 1_700_000_000_000 + at, **typed, **more})
        for at in range(first, first + n)
    ]


def auto(**settings: Any) -> Resolved:
    given = {"model.name": "auto", **{name.replace("__", "."): value for name, value in settings.items()}}
    return resolve([Layer("test", given)])


def choice(resolved: Resolved) -> tuple[Ready, str]:
    """What is chosen for a state that is new, and what is said."""
    manifest = Manifest(1, "freshet", fixed_settings(resolved), future_bound=2_000_000_000_000)
    ready = Ready(resolved, folder_of(resolved), "", None, Keys("freshet"), manifest, None)
    out = io.StringIO()
    return chosen(ready, files_of(resolved), None, Console(file=out, width=200)), out.getvalue().strip()


def of_file(path: Path, lines: list[bytes], **settings: Any) -> tuple[str, str]:
    path.write_bytes(b"\n".join(lines))
    ready, said = choice(auto(source=f"file:{path}", **settings))
    assert ready.manifest.fixed == fixed_settings(ready.resolved)
    return ready.resolved.model_name, said


@pytest.mark.parametrize(
    ("lines", "name", "ratings", "looked_at"),
    [
        (events("rating", 3, event_value=4.0), "stack", 3, 3),
        (events(None, 3, event_value=4.0), "stack", 3, 3),
        (events(None, 3), "blend", 0, 3),
        (events("purchase", 3, event_value=4.0), "blend", 0, 3),
        ([*events("view", 2), *events("rating", 2, event_value=1.0)], "blend", 2, 4),
        ([*events("view", 2), *events("rating", 3, event_value=1.0)], "stack", 3, 5),
        # No more than the first 1,000 are looked at, and only those that can be used.
        ([*events("view", 1_000), *events("rating", 5_000, event_value=1.0)], "blend", 0, 1_000),
        ([*events("rating", 999), b"{", b"", *events("view", 400), *events("rating", 601, event_value=1.0)], "stack",
         600, 1_000),
    ],
)  # fmt: skip
def test_the_first_events_tell(lines: list[bytes], name: str, ratings: int, looked_at: int, tmp_path: Path) -> None:
    said = f"model: {name}, as {ratings:,} of the first {looked_at:,} events are ratings"
    assert of_file(tmp_path / "log.jsonl", lines) == (name, said)


def test_they_are_read_as_the_settings_say(tmp_path: Path) -> None:
    csv = [b"who,what,when,stars", *(b"u,i,1700000000,4.5" for _ in range(5))]
    columns = {"field.user_id": "who", "field.item_id": "what", "field.timestamp": "when"}
    assert of_file(tmp_path / "log.csv", csv, **columns)[0] == "blend"
    assert of_file(tmp_path / "log.csv", csv, **columns, **{"field.event_value": "stars"})[0] == "stack"
    assert of_file(tmp_path / "log.jsonl", events(None, 5, event_value=4.0), events__default_type="cart")[0] == "blend"


def test_a_folder_is_looked_at_in_the_order_of_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(events("rating", 2_000, first=2_000, event_value=1.0)))
    (tmp_path / "b.jsonl").write_bytes(b"\n".join(events("view", 2_000)))
    assert choice(auto(source=f"file:{tmp_path}"))[0].resolved.model_name == "blend"


def test_the_generator_has_ratings() -> None:
    assert choice(auto(generator__rate=1))[0].resolved.model_name == "stack"


@pytest.mark.parametrize("lines", [[], [b"{"] * 12_000, [*[b"{"] * 10_000, *events("view", 5)]])
def test_what_tells_nothing_is_an_error_that_says_what_to_do(lines: list[bytes], tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^model.name: .*log.jsonl has none .* --model blend, .* --model stack, "):
        of_file(tmp_path / "log.jsonl", lines)


def test_a_model_that_is_named_is_not_looked_for(tmp_path: Path) -> None:
    ready, said = choice(resolve([Layer("test", {"source": f"file:{Path(__file__)}", "format": "jsonl"})]))
    assert (ready.resolved.model_name, said) == ("biased_mf", "")


@pytest.mark.parametrize("name", ["stack", "blend", "biased_mf"])
def test_a_state_keeps_its_model(name: str) -> None:
    given = resolve([Layer("test", {"model.name": name, "model.n_factors": 4})])
    known = Manifest(1, "freshet", fixed_settings(given))
    assert fixed_settings(as_learned(auto(model__n_factors=4), known)) == known.fixed
    assert as_learned(auto(), None).model_name == "auto"
    other = resolve([Layer("test", {"model.name": "funk_mf"})])
    assert as_learned(other, known) is other


def test_settings_must_suit_the_model_that_is_chosen(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^model.l2: stack has no such parameter"):
        auto(model__l2=0.1)
    with pytest.raises(SettingsError, match=r"^model.max_weight: "):
        auto(model__max_weight=-1)
    with pytest.raises(SettingsError, match=r"^growth.max_items: blend links items"):
        of_file(tmp_path / "log.jsonl", events("view", 3), growth__max_items=5)
    assert of_file(tmp_path / "log.jsonl", events("rating", 3, event_value=2.0), growth__max_items=5)[0] == "stack"
    with pytest.raises(SettingsError, match=r"^model.neighbours: stack has no such parameter"):
        of_file(tmp_path / "log.jsonl", events("rating", 3, event_value=2.0), model__neighbours=5)
