"""Which sources of a log have gone idle, by the wall clock."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

_STEP: Final = 6_000  # a beat comes every 5 s


class IdleClock:
    """Tells sources that give nothing from those of which nothing is heard because nothing is heard at all.

    Time only passes here while the job is at work: a pause between two calls, as long as it may be, counts for a few
    seconds. So a source is not taken for idle because Redis was away, or because another came first after a restart.

    Parameters
    ----------
    known
        Sources that are waited for before they have come.
    idle_after
        Milliseconds; 0 is never.

    Examples
    --------
    >>> clock = IdleClock(["a", "b"], 10_000)
    >>> for now in (0, 5_000, 10_000):
    ...     clock.heard(["a"], now)
    >>> clock.is_idle("a"), clock.is_idle("b")
    (False, True)
    """

    def __init__(self, known: Iterable[str], idle_after: int) -> None:
        self._idle_after = idle_after
        self._lived = 0
        self._now: int | None = None
        self._heard = dict.fromkeys(known, 0)

    def heard(self, sources: Iterable[str], now: int) -> None:
        """It is ``now`` (wall clock, ms), and these sources have come."""
        if self._now is not None:
            self._lived += min(max(now - self._now, 0), _STEP)
        self._now = now
        for source in sources:
            self._heard[source] = self._lived

    def is_idle(self, source: str) -> bool:
        """One that was never asked for counts as just heard."""
        return 0 < self._idle_after <= self._lived - self._heard.setdefault(source, self._lived)
