r"""A blend of recommenders whose weights are learned online.

A list is made in two steps. Candidates are what the user met, the neighbours of what was met last, and what is popular:
some hundred or thousand items, however many there are. Each is scored by $s_i = w \cdot x_i$, where the features x are
the learners' scores as $\ln(1 + 2 c / \bar c)$, raw logits, and what is known of the user and the item together. Items
that are no candidates come after all that are, by decayed popularity. That is the ranking which is served, and which is
evaluated.

Weights are a sum of a few sets, one for each context that holds: how much is known of the user, how long ago the last
event was, how much is in the basket. They step by AdaGrad on the cross entropy of what was met among the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from serving.blend import DECAYED, FADE
from udfs.embeddings import Vectors, begun, dot, embed, gather, sample, vectors
from udfs.history import BASKET, EVENTS, SIZE, Histories, found, histories, in_basket, meet
from udfs.jit import njit
from udfs.links import Links, accompany, add_row, follow, links
from udfs.models import Array
from udfs.popularity import Popularity, popularise, popularity, popularity_grown
from udfs.ranking import MISS, NOT_NEW, Predicted, RankingConfig, grouped
from udfs.recommenders import Recommender, all_grown, grown

HALF_LIVES: Final = (1_000.0, 8_000.0, 64_000.0, math.inf)  # in events
POPS: Final = len(HALF_LIVES)
# Sums over links.
SHORT, LONG, NEAR, BASKETED = range(4)
SUMS: Final = 4
EMBEDDED: Final = POPS + SUMS
OWN: Final = EMBEDDED + 1  # the first feature that only items have which the user met
FEATURES: Final = (
    *(f"popularity {of:g}" for of in HALF_LIVES),
    *("markov", "markov far", "co-occurrence", "with the basket", "embedding"),
    *("met", "met twice", "met 3 times", "met 5 times"),
    *("2 baskets ago", "3 baskets ago", "5 baskets ago", "9 baskets ago", "in the basket"),
    *("share of baskets", "repeated by all", "items since", "faded rate"),
)
AGAIN: Final = len(FEATURES)  # for what was met, the features that all items have once more: it may need other weights
WIDTH: Final = AGAIN + OWN
CONTEXTS: Final = (
    "always",
    *("no event", "below 10 events", "below 100 events", "more events"),
    *("in a basket", "within an hour", "within a week", "later"),
    *("empty basket", "below 4 items", "below 15 items", "larger basket"),
)
_AT_ONCE: Final = 4  # contexts that hold at a time
# Rankers whose places are counted: the blend, and each learner alone.
BLEND: Final = 0
REPEATS: Final = 1 + POPS
FIRST_SUM: Final = 2 + POPS
EMBEDDINGS: Final = FIRST_SUM + SUMS
RANKERS: Final = (
    "blend",
    *(f"popularity {of:g}" for of in HALF_LIVES),
    *("repeats", "markov", "markov far", "co-occurrence", "with the basket", "embeddings"),
)
# Which items a place is among.
ALL, NEW, LEFT_OUT = range(3)
_HOUR: Final = 3_600_000
_TOPS_EVERY: Final = 1_000
_LN2: Final = math.log(2.0)
_ROOM: Final = 1_024  # the longest list, too


class Settings(NamedTuple):
    """How the parts learn; see their own classes.

    Attributes
    ----------
    recent, basket
        From how many of the user's last items links are followed, and from how many of an open basket.
    teach_first, teach_every
        So many events teach the weights, of as many after them one in two, then one in three, and so on, down to one in
        so many.
    """

    recent: int = 10
    gamma: float = 0.5
    gamma_far: float = 0.9
    alpha: float = 0.5
    basket: int = 60
    window: int = 3
    reverse: float = 1.0
    window_near: int = 5
    keep: float = 0.999
    recent_embedded: int = 5
    gamma_embedded: float = 0.7
    negatives: int = 5
    rate_embedded: float = 0.15
    rate: float = 0.1
    teach_first: int = 15_000
    teach_every: int = 100


class Parts(NamedTuple):
    """All that is learned.

    Attributes
    ----------
    met
        Rows of users.
    follows, near, vectors
        Rows of items.
    popular, counts, repeated
        How popular items are, how often they were met, and how often by someone who had met them before.
    weights, squares
        Of features in contexts, and the sums of their squared gradients, shape ``(contexts, features)``.
    scales
        Running means of the sums over links, where there are some, shape ``(SUMS,)``.
    tops
        The most popular items of late, int32; -1 where there are less.
    marks
        How many items are known, how many events were learned, and how many when ``tops`` were found, int64.
    changed
        Of each item, whether its row has changed since someone looked, uint8.
    """

    met: Histories
    follows: Links
    near: Links
    vectors: Vectors
    popular: Popularity
    counts: Array
    repeated: Array
    weights: Array
    squares: Array
    scales: Array
    tops: Array
    marks: Array
    changed: Array


class Scratch(NamedTuple):
    """Room for one list; ``at`` and ``sums`` are left as they are found: -1 and 0.

    Attributes
    ----------
    at
        Of each item, where it is among the candidates; -1.
    items
        Candidates: first what the user met, in the order of the user's row.
    sums, features, scores, shares, one
        Of candidates: sums over links, features, both shape ``(..., items)``, scores, the slopes of the cross entropy
        by them, and the scores by one learner.
    mean, gradient, negatives
        Of embeddings.
    contexts
        Those that hold.
    """

    at: Array
    items: Array
    sums: Array
    features: Array
    scores: Array
    shares: Array
    one: Array
    mean: Array
    gradient: Array
    negatives: Array
    contexts: Array


@njit(cache=True)
def _candidates(of: Parts, to: Scratch, user: int, time: int, s: Settings) -> int:
    """Finds candidates, and their sums over links; returns how many there are."""
    met, n = of.met, 0
    size = met.marks[user, SIZE] if user >= 0 else 0
    for at in range(size):
        to.items[n] = met.items[user, at]
        to.at[to.items[n]] = n
        n += 1
    held = in_basket(met, user, time) if user >= 0 else 0
    near, far = 1.0, 1.0
    held = min(held, s.basket)
    for back in range(min(size, max(s.recent, held))):
        item = met.items[user, size - 1 - back]
        if back < s.recent:
            n = add_row(of.follows, item, near, s.alpha, to.at, to.items, n, to.sums[SHORT])
            n = add_row(of.follows, item, far, s.alpha, to.at, to.items, n, to.sums[LONG])
            n = add_row(of.near, item, far, s.alpha, to.at, to.items, n, to.sums[NEAR])
        if back < held:
            n = add_row(of.near, item, 1.0, s.alpha, to.at, to.items, n, to.sums[BASKETED])
        near *= s.gamma
        far *= s.gamma_far
    for item in of.tops:
        if item >= 0 and to.at[item] < 0:
            to.items[n], to.at[item] = item, n
            n += 1
    for at in range(n):
        linked = math.sqrt(max(of.near.sums[to.items[at]], 1.0))
        to.sums[NEAR, at] /= linked
        to.sums[BASKETED, at] /= linked
    return n


@njit(cache=True)
def _logarithms(values: Array, exponents: Array) -> None:
    r"""Natural logarithms of positive numbers, in place, to 1e-13, and the same on every machine.

    With $x = 2^e m$ and m between $\sqrt{1/2}$ and $\sqrt 2$: $\ln x = e \ln 2 + 2 \operatorname{artanh}((m-1)/(m+1))$,
    the latter by its series. ``exponents`` is scratch.
    """
    bits = values.view(np.int64)
    for at in range(len(values)):
        exponent = (bits[at] - 0x3FE6A09E667F3BCD) >> 52
        bits[at] -= exponent << 52
        exponents[at] = exponent
    for at in range(len(values)):
        ratio = (values[at] - 1.0) / (values[at] + 1.0)
        square = ratio * ratio
        series = 1 / 13 + square / 15
        series = 1 / 7 + square * (1 / 9 + square * (1 / 11 + square * series))
        series = 1.0 + square * (1 / 3 + square * (1 / 5 + square * series))
        values[at] = exponents[at] * _LN2 + 2.0 * ratio * series


@njit(cache=True)
def _describe(of: Parts, to: Scratch, user: int, time: int, n: int, s: Settings) -> float:
    """The features of candidates, and the contexts that hold; returns the weight of the embeddings' mean."""
    met, popular = of.met, of.popular
    embedded = gather(of.vectors, met, user, s.recent_embedded, s.gamma_embedded, to.mean) if user >= 0 else 0.0
    for h in range(POPS):
        # Against the share that each item has on average.
        x, weights, factor = to.features[h], popular.weights[h], of.marks[0] / popular.scales[h, 1] if n else 0.0
        for at in range(n):
            x[at] = 1.0 + weights[to.items[at]] * factor
        _logarithms(x[:n], to.one)
    for k in range(SUMS):
        x, sums = to.features[POPS + k], to.sums[k]
        if of.scales[k] > 0.0:
            factor = 2.0 / of.scales[k]
            for at in range(n):
                x[at] = 1.0 + factor * sums[at]
        else:
            for at in range(n):
                x[at] = 3.0 if sums[at] > 0.0 else 1.0
        _logarithms(x[:n], to.one)
    for at in range(n):
        to.features[EMBEDDED, at] = dot(to.mean, of.vectors.outputs[to.items[at]]) if embedded > 0.0 else 0.0
    held = in_basket(met, user, time) if user >= 0 else 0
    size, basket = 0, 1
    if user >= 0:
        size, basket = met.marks[user, SIZE], met.marks[user, BASKET] + (1 if held == 0 else 0)
    for at in range(size):
        item, x = to.items[at], to.features[:, at]
        since, count = basket - met.baskets[user, at], met.counts[user, at]
        x[OWN] = 1.0
        x[OWN + 1], x[OWN + 2], x[OWN + 3] = count >= 2, count >= 3, count >= 5
        x[OWN + 4], x[OWN + 5], x[OWN + 6], x[OWN + 7] = since >= 2, since >= 3, since >= 5, since >= 9
        x[OWN + 8] = since == 0
        x[OWN + 9] = count / max(basket - 1, 1)
        x[OWN + 10] = (of.repeated[item] + 0.1) / (of.counts[item] + 1.0)
        x[OWN + 11] = size - at
        x[OWN + 12] = met.rates[user, at] * FADE**since + 0.05
    for f in range(OWN + 9, AGAIN):
        _logarithms(to.features[f, :size], to.one)
    for f in range(OWN):
        to.features[AGAIN + f, :size] = to.features[f, :size]
    events = met.marks[user, EVENTS] if user >= 0 else 0
    past = time - met.times[user] if user >= 0 else 0
    to.contexts[0] = 0
    to.contexts[1] = 1 + (0 if events == 0 else 1 if events < 10 else 2 if events < 100 else 3)
    to.contexts[2] = 5 + (0 if held else 1 if past < _HOUR else 2 if past < 7 * 24 * _HOUR else 3)
    to.contexts[3] = 9 + (0 if held == 0 else 1 if held < 4 else 2 if held < 15 else 3)
    return embedded


@njit(cache=True)
def _score(of: Parts, to: Scratch, size: int, n: int) -> None:
    """The scores of candidates, the first ``size`` of which the user met."""
    to.scores[:n] = 0.0
    for f in range(WIDTH):
        weight = 0.0
        for k in range(_AT_ONCE):
            weight += of.weights[to.contexts[k], f]
        x = to.features[f]
        for at in range(n if f < OWN else size):
            to.scores[at] += weight * x[at]


@njit(cache=True)
def _teach(of: Parts, to: Scratch, items: Array, size: int, n: int, rate: float) -> None:
    """Steps the weights towards items that were met, those of them that are candidates."""
    hits = 0
    for item in items:
        hits += to.at[item] >= 0
    for k in range(SUMS):
        for at in range(n):
            if to.sums[k, at] > 0.0:
                of.scales[k] += (to.sums[k, at] - of.scales[k]) * (1e-5 if of.scales[k] > 0.0 else 1.0)
    if hits == 0:
        return
    highest, total, shares = to.scores[:n].max(), 0.0, to.shares
    for at in range(n):
        shares[at] = math.exp(to.scores[at] - highest)
        total += shares[at]
    for at in range(n):
        shares[at] *= hits / total
    for item in items:
        if to.at[item] >= 0:
            shares[to.at[item]] -= 1.0
    # The root keeps a basket of hundreds from having as much to say as hundreds of baskets.
    scale = 1.0 / math.sqrt(hits)
    for f in range(WIDTH):
        slope = _product(shares, to.features[f], n if f < OWN else size) * scale
        if slope != 0.0:
            for k in range(_AT_ONCE):
                of.squares[to.contexts[k], f] += slope * slope
                of.weights[to.contexts[k], f] -= rate * slope / math.sqrt(of.squares[to.contexts[k], f])


@njit(cache=True)
def _product(left: Array, right: Array, n: int) -> float:
    """A dot product in four sums side by side, the same on every machine."""
    a, b, c, d, fours = 0.0, 0.0, 0.0, 0.0, n - n % 4
    for at in range(0, fours, 4):
        a += left[at] * right[at]
        b += left[at + 1] * right[at + 1]
        c += left[at + 2] * right[at + 2]
        d += left[at + 3] * right[at + 3]
    for at in range(fours, n):
        a += left[at] * right[at]
    return (a + b) + (c + d)


@njit(cache=True)
def _one(of: Parts, to: Scratch, user: int, basket: int, size: int, ranker: int, n: int) -> None:
    """The scores of candidates by one ranker: above 0 where it has one."""
    for at in range(n):
        to.one[at] = 0.0
    if ranker == BLEND:
        lowest = np.inf
        for at in range(n):
            lowest = min(lowest, to.scores[at])
        for at in range(n):
            to.one[at] = to.scores[at] - lowest + 1.0
    elif ranker == REPEATS:
        for at in range(size):
            to.one[at] = of.met.rates[user, at] * FADE ** (basket - of.met.baskets[user, at])
    elif FIRST_SUM <= ranker < EMBEDDINGS:
        for at in range(n):
            to.one[at] = to.sums[ranker - FIRST_SUM, at]


@njit(cache=True)
def _place(scores: Array, counts: Array, item: int) -> tuple[int, int]:
    """How many known items score better, and how many others the same."""
    mine, first, same = scores[item], 0, 0
    for other in range(len(scores)):
        first += scores[other] > mine
        same += scores[other] == mine
    if mine <= 0.0:  # elsewhere an item that is not known yet, which has 0, does not count
        for other in range(len(scores)):
            if counts[other] == 0.0:
                first -= scores[other] > mine
                same -= scores[other] == mine
    return first, same - 1


@njit(cache=True)
def _left_out(
    of: Parts, to: Scratch, popular: Array, own: float, dense: bool, item: int, out: Array
) -> tuple[int, int]:
    """How many of some items come before an item, and how many tie with it; each counts once."""
    first, same = 0, 0
    for at in range(len(out)):
        other = out[at]
        again = of.counts[other] == 0.0
        for before in range(at):
            again |= out[before] == other
        if again or other == item:
            continue
        score = to.one[to.at[other]] if not dense and to.at[other] >= 0 else 0.0
        if own > 0.0 or score > 0.0:
            first += score > own
            same += score == own
        else:
            first += popular[other] > popular[item]
            same += popular[other] == popular[item]
    return first, same


@njit(cache=True)
def _places(
    of: Parts, to: Scratch, user: int, time: int, item: int, group: Array, n: int, embedded: float,
    decayed: tuple[int, int], rankers: Array, protocols: Array, better: Array, ties: Array,
) -> None:  # fmt: skip
    """Counts where an item stands by each ranker and protocol; ``better`` and ``ties`` are of that shape.
    ``decayed`` is where it stands by decayed popularity."""
    size = of.met.marks[user, SIZE]
    basket = of.met.marks[user, BASKET] + (1 if in_basket(of.met, user, time) == 0 else 0)
    known = of.marks[0]
    for r in range(len(rankers)):
        ranker = rankers[r]
        if ranker == EMBEDDINGS:
            # Alone it scores all items, and has no candidates.
            popular = to.one
            for other in range(known):
                popular[other] = dot(to.mean, of.vectors.outputs[other]) if embedded > 0.0 else 0.0
        else:
            _one(of, to, user, basket, size, ranker, n)
            popular = of.popular.weights[ranker - 1 if 1 <= ranker <= POPS else DECAYED]
        dense = ranker == EMBEDDINGS or 1 <= ranker <= POPS
        own = 0.0 if dense or to.at[item] < 0 else to.one[to.at[item]]
        first, same = 0, 0
        if own > 0.0:
            for at in range(n):
                first += to.one[at] > own
                same += to.one[at] == own
            same -= 1
        else:
            mine = popular[item]
            if dense and ranker != 1 + DECAYED:
                first, same = _place(popular[:known], of.counts, item)
            else:
                first, same = decayed
            if not dense:
                for at in range(n):  # what has a score comes first, however popular
                    other = to.items[at]
                    if to.one[at] > 0.0 and popular[other] <= mine:
                        first += 1
                        same -= popular[other] == mine
        for p in range(len(protocols)):
            better[p, r], ties[p, r] = first, same
            if protocols[p] == LEFT_OUT:
                ahead, level = _left_out(of, to, popular, own, dense, item, group)
            elif protocols[p] == NEW:
                ahead, level = _left_out(of, to, popular, own, dense, item, to.items[:size])
            else:
                continue
            better[p, r] -= ahead
            ties[p, r] -= level
            if protocols[p] == NEW and found(of.met, user, item) >= 0:
                better[p, r] = NOT_NEW


@njit(cache=True)
def _best(to: Scratch, n: int, out: Array) -> None:
    """The best candidates into ``out``, the best first; -1 where there are less."""
    out[:] = -1
    length = 0
    for at in range(n):
        if length == len(out) and to.scores[at] <= to.one[length - 1]:
            continue
        to_place = length if length < len(out) else length - 1
        while to_place > 0 and to.one[to_place - 1] < to.scores[at]:
            out[to_place], to.one[to_place] = out[to_place - 1], to.one[to_place - 1]
            to_place -= 1
        out[to_place], to.one[to_place] = to.items[at], to.scores[at]
        length = min(length + 1, len(out))


@njit(cache=True)
def _clear(to: Scratch, n: int) -> None:
    for at in range(n):
        to.at[to.items[at]] = -1
        for k in range(SUMS):
            to.sums[k, at] = 0.0


@njit(cache=True)
def _learn(of: Parts, to: Scratch, user: int, item: int, time: int, s: Settings, seed: int) -> None:
    follow(of.follows, of.met, user, item, s.window, s.reverse, s.keep)
    accompany(of.near, of.met, user, item, s.window_near, s.keep)
    of.repeated[item] += found(of.met, user, item) >= 0
    of.counts[item] += 1.0
    of.marks[0] = max(of.marks[0], item + 1)
    sample(seed, of.marks[1], of.marks[0], to.negatives)
    embed(
        of.vectors, of.met, user, item, of.counts, s.recent_embedded, s.gamma_embedded, to.negatives, s.rate_embedded,
        of.changed, to.mean, to.gradient,
    )  # fmt: skip
    popularise(of.popular, item)
    reach = max(s.window, s.window_near, s.recent_embedded)
    size = of.met.marks[user, SIZE]
    for back in range(min(size, reach)):
        of.changed[of.met.items[user, size - 1 - back]] = 1
    of.changed[item] = 1
    meet(of.met, user, item, time)
    of.marks[1] += 1
    pause = max(_TOPS_EVERY, of.marks[0] // 4) if of.marks[1] >= _TOPS_EVERY else 50
    if of.marks[1] >= of.marks[2] + pause:
        of.marks[2] = of.marks[1]
        order = np.argsort(-of.popular.weights[DECAYED, : of.marks[0]], kind="mergesort")
        for at in range(min(len(of.tops), len(order))):
            of.tops[at] = order[at] if of.counts[order[at]] > 0.0 else -1


@njit(cache=True, nogil=True)  # what was learned before is written meanwhile
def _test_then_learn(
    of: Parts, to: Scratch, users: Array, items: Array, times: Array, starts: Array, wanted: Array, s: Settings,
    seed: int, rankers: Array, protocols: Array, head: float, better: Array, ties: Array, returning: Array,
    popular: Array, offered: Array,
) -> None:  # fmt: skip
    """Learns each group, after it has predicted it where an event is wanted, or the weights are to step."""
    for group in range(len(starts) - 1):
        first, end = starts[group], starts[group + 1]
        user, time, learned = users[first], times[first], of.marks[1]
        # All of the first events teach, then one in two, one in three, and so on.
        teaching = -learned % min(learned // s.teach_first + 1, s.teach_every) < end - first
        asked = wanted[first:end].any()
        if teaching or asked:
            n = _candidates(of, to, user, time, s)
            embedded = _describe(of, to, user, time, n, s)
            _score(of, to, of.met.marks[user, SIZE], n)
            if asked:
                _best(to, n, offered[group])
            for event in range(first, end):
                item = items[event]
                returning[event] = of.met.marks[user, EVENTS] > 0
                if wanted[event] and of.counts[item] > 0.0:
                    decayed = _place(of.popular.weights[DECAYED, : of.marks[0]], of.counts, item)
                    popular[event] = decayed[0] < head * of.marks[0]
                    _places(
                        of, to, user, time, item, items[first:end], n, embedded, decayed, rankers, protocols,
                        better[event], ties[event],
                    )  # fmt: skip
            if teaching:
                _teach(of, to, items[first:end], of.met.marks[user, SIZE], n, s.rate)
            _clear(to, n)
        for event in range(first, end):
            _learn(of, to, user, items[event], time, s, seed)


@njit(cache=True)
def _recommend(of: Parts, to: Scratch, user: int, time: int, s: Settings, out: Array) -> None:
    """The score of every item into ``out``: candidates first, then by decayed popularity."""
    n = _candidates(of, to, user, time, s)
    _describe(of, to, user, time, n, s)
    _score(of, to, of.met.marks[user, SIZE] if user >= 0 else 0, n)
    lowest = np.inf
    for at in range(n):
        lowest = min(lowest, to.scores[at])
    for item in range(len(out)):
        share = of.popular.weights[DECAYED, item] / of.popular.scales[DECAYED, 1]  # at most 1
        out[item] = to.scores[to.at[item]] if to.at[item] >= 0 else (lowest if n else 0.0) - 2.0 + share
    _clear(to, n)


class Blend(Recommender):
    r"""The blend of popularity at several half-lives, what the user met, Markov links, co-occurrence and embeddings.

    Parameters
    ----------
    settings
        How the parts learn.
    neighbours, seen
        How many links a row of an item keeps (twice: following, and near), and how many items a row of a user.
    n_factors
        Of embeddings.
    tops
        How many of the most popular items are candidates for everyone.
    caution
        The sums of squared gradients that weights begin with: how slowly they leave what they begin with. Without, the
        first steps are whole ones, even where a slope is only rounding.

    References
    ----------
    Weights: McMahan et al., "Ad click prediction: a view from the trenches", 2013, for online log-linear models with a
    rate a coordinate; the parts: see :mod:`udfs.popularity`, :mod:`udfs.neighbours` and :mod:`udfs.embeddings`.

    Examples
    --------
    >>> model = Blend()
    >>> for n in range(200):
    ...     model.learn([f"u{n}"] * 2, ["tea", "milk"] if n % 2 else ["rum", "cola"], np.array([2 * n, 2 * n + 1]))
    >>> model.learn_one("eve", "rum", 500)
    >>> model.rank("eve", k=1), len(model.rank("nobody"))
    (['cola'], 4)
    """

    def __init__(
        self,
        settings: Settings | None = None,
        neighbours: int = 30,
        seen: int = 200,
        n_factors: int = 16,
        tops: int = 200,
        caution: float = 100.0,
        spread: float = 0.05,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.settings = settings or Settings()
        self.neighbours, self.seen, self.n_factors, self.spread, self.seed = neighbours, seen, n_factors, spread, seed
        weights = np.zeros((len(CONTEXTS), WIDTH))
        # Something to begin with: what is popular, linked or met before is better than what is not.
        weights[0, :POPS], weights[0, POPS:OWN], weights[0, OWN] = 0.2, 0.2, 0.5
        self.parts = Parts(
            histories(0, seen), links(0, neighbours), links(0, neighbours), vectors(0, n_factors),
            popularity(HALF_LIVES), self.counts, np.zeros(0), weights, np.full(weights.shape, caution), np.zeros(SUMS),
            np.full(tops, -1, dtype=np.int32), np.zeros(3, dtype=np.int64), np.zeros(0, dtype=np.uint8),
        )  # fmt: skip
        self._scratch = self._room(_ROOM)
        self._begun = 0

    def _room(self, items: int) -> Scratch:
        scores, shares, one = np.zeros((3, items))
        mean, gradient = np.zeros((2, self.n_factors), dtype=np.float32)
        negatives = np.zeros(self.settings.negatives, dtype=np.int64)
        return Scratch(
            np.full(items, -1, dtype=np.int32), np.zeros(items, dtype=np.int32), np.zeros((SUMS, items)),
            np.zeros((WIDTH, items)), scores, shares, one, mean, gradient, negatives,
            np.zeros(_AT_ONCE, dtype=np.int64),
        )  # fmt: skip

    def fit(self) -> None:
        super().fit()
        users, items = len(self.users.names), len(self.items.names)
        of = self.parts
        self.parts = of._replace(
            met=all_grown(of.met, users), follows=all_grown(of.follows, items), near=all_grown(of.near, items),
            vectors=begun(all_grown(of.vectors, items), self.items.names, self._begun, self.spread, self.seed),
            popular=popularity_grown(of.popular, items), counts=self.counts, repeated=grown(of.repeated, items),
            changed=grown(of.changed, items),
        )  # fmt: skip
        self._begun = items
        if len(self._scratch.at) < len(self.counts):
            self._scratch = self._room(max(len(self.counts), _ROOM))

    def learn_numbers(self, users: Array, items: Array, times: Array) -> None:
        self.rank_then_learn(users, items, times, np.zeros(len(users), dtype=np.bool_), RankingConfig(), (), ())

    def test_then_learn(
        self,
        user_ids: Sequence[str],
        item_ids: Sequence[str],
        times: Array,
        wanted: Array,
        config: RankingConfig,
        rankers: Sequence[int] = (BLEND, 1 + DECAYED, POPS),
        protocols: Sequence[int] = (ALL,),
    ) -> Predicted:
        """Predicts events, and then learns them.

        Parameters
        ----------
        times
            In order; a group must be whole, or it is predicted as two.
        wanted
            Which events are evaluated, shape ``(n,)``.
        rankers, protocols
            What is counted: :data:`RANKERS` by their places, and :data:`ALL`, :data:`NEW`, :data:`LEFT_OUT`.
        """
        users, items = np.array(self.users.add(user_ids)), np.array(self.items.add(item_ids))
        self.fit()
        return self.rank_then_learn(users, items, times, wanted, config, rankers, protocols)

    def rank_then_learn(
        self, users: Array, items: Array, times: Array, wanted: Array, config: RankingConfig, rankers: Sequence[int],
        protocols: Sequence[int],
    ) -> Predicted:  # fmt: skip
        """:meth:`test_then_learn` of numbers that have places."""
        n = len(users)
        order, starts = grouped(times, users) if config.held_out else (np.arange(n), np.arange(n + 1))
        shape = (n, len(protocols), len(rankers))
        better, ties = np.full(shape, MISS), np.zeros(shape, dtype=np.int64)
        returning, head = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
        offered = np.full((len(starts) - 1, config.k), -1, dtype=np.int64)
        chosen = wanted[order]
        _test_then_learn(
            self.parts, self._scratch, users[order], items[order], times[order], starts, chosen, self.settings,
            self.seed, np.array(rankers, dtype=np.int64), np.array(protocols, dtype=np.int64), config.head, better,
            ties, returning, head, offered,
        )  # fmt: skip
        return Predicted(
            order[chosen], better[chosen], ties[chosen], returning[chosen], head[chosen], offered[offered >= 0]
        )

    def scores(self, user: int, time: int | None = None) -> Array:
        """The score of each item for a user at a time; without one, just after the last event."""
        scores = np.zeros(len(self.items.names))
        if time is None:
            time = int(self.parts.met.times[user]) + 1 if user >= 0 else 0
        if len(scores):
            _recommend(self.parts, self._scratch, user, time, self.settings, scores)
        return scores
