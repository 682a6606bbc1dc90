"""Names of what outlives a process: they are the contract between one version of the job and the next."""

from __future__ import annotations

from typing import Final


class Uid:
    """Operator uids. A savepoint finds its state by them."""

    READ: Final = "read"  # followed by the kind of source: each has its own position
    INTAKE: Final = "intake"
    LEARN: Final = "learn"
    DEAD_LETTERS: Final = "dead-letters"
    ITEMS: Final = "items"  # followed by the run: each reads the catalogue's topic from its beginning
    TILES: Final = "tiles"  # followed by the part: windows do not outlive the input that they were opened by
    # The same. The number goes up when the plan changes: windows that are open under another one are left behind, since
    # their operators have their places in the plan for names, and would be taken for others.
    WINDOWS: Final = "windows-2"


class File:
    """Files that workers write to the state folder, beside the journal."""

    RETRIES: Final = "redis-retries"


class State:
    """Names of keyed state."""

    POSITION: Final = "position"
    TAKEN: Final = "taken"
    INTAKE_HEADER: Final = "header"
    INTAKE_BLOBS: Final = "blobs"
    LEARNER_HEADER: Final = "header"
    ROWS: Final = "rows"
    WAITING: Final = "waiting"
    TOMBSTONES: Final = "tombstones"
