"""River's recommenders compiled: record by record, in River's order of operations, over rows in tables.

Arithmetic is IEEE's, strictly: nothing is reordered or fused, so a sum is the same on every machine. Results are
River's bit for bit but where River takes powers, for which this takes products and square roots, and but for the order
of sums in a dot product: River leaves it to the BLAS of the machine. As a rule it is the same for less than 16 factors.
"""

from __future__ import annotations

import math

import numpy as np

from udfs.compiled import ADA_GRAD, ADAM, RMS_PROP, SGD
from udfs.jit import njit
from udfs.models import Array

_LONG = 16


@njit(cache=True)
def _rate(optimizer: int, options: Array, rate: float, iteration: int) -> float:
    """The learning rate of a step; Adam's corrects the bias of its moments."""
    if optimizer == ADAM:
        corrected = rate * (1.0 - options[2] ** (iteration + 1.0)) ** 0.5
        return float(corrected / (1.0 - options[1] ** (iteration + 1.0)))
    return rate


@njit(cache=True)
def _root(x: float, n: int) -> float:
    """A square root as River takes it: of numbers alone, a power."""
    return x**0.5 if n == 1 else math.sqrt(x)


@njit(cache=True)
def _step(optimizer: int, options: Array, rate: float, old: Array, new: Array, at: int, gradients: Array) -> None:
    """Steps weights that begin at ``at`` of a row; behind them lie as many numbers for each slot."""
    n = len(gradients)
    if optimizer == SGD:
        for f in range(n):
            new[at + f] = old[at + f] - rate * gradients[f]
    elif optimizer == ADA_GRAD:
        for f in range(n):
            squares = old[at + n + f] + gradients[f] * gradients[f]
            new[at + n + f] = squares
            new[at + f] = old[at + f] - rate / _root(squares + options[0], n) * gradients[f]
    elif optimizer == ADAM:
        for f in range(n):
            m = options[1] * old[at + n + f] + (1.0 - options[1]) * gradients[f]
            v = options[2] * old[at + 2 * n + f] + (1.0 - options[2]) * (gradients[f] * gradients[f])
            new[at + n + f] = m
            new[at + 2 * n + f] = v
            new[at + f] = old[at + f] - rate * m / (_root(v, n) + options[0])
    elif optimizer == RMS_PROP:
        for f in range(n):
            squares = options[1] * old[at + n + f] + (1.0 - options[1]) * (gradients[f] * gradients[f])
            new[at + n + f] = squares
            new[at + f] = old[at + f] - rate / _root(squares + options[0], n) * gradients[f]
    else:
        for f in range(n):
            velocity = options[0] * old[at + n + f] + rate * gradients[f]
            new[at + n + f] = velocity
            new[at + f] = old[at + f] - velocity


@njit(cache=True)
def _dot(left: Array, right: Array, at: int, n: int) -> float:
    """The dot product of what begins at ``at`` of two rows: from left to right, as BLAS takes short ones; of long ones
    in four sums side by side, and then what is left."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    fours = n - n % 4 if n >= _LONG else 0
    for f in range(at, at + fours, 4):
        a += left[f] * right[f]
        b += left[f + 1] * right[f + 1]
        c += left[f + 2] * right[f + 2]
        d += left[f + 3] * right[f + 3]
    total = (a + b) + (c + d)
    for f in range(at + fours, at + n):
        total += left[f] * right[f]
    return total


@njit(cache=True)
def _begin(row: Array, row_bias: float, row_vector: Array, vector_at: int) -> None:
    """A new row: initial weights, and slots of zero."""
    row[:] = 0.0
    if vector_at > 0:
        row[0] = row_bias
    for f in range(len(row_vector)):
        row[vector_at + f] = row_vector[f]


@njit(cache=True)
def _bounded(row: Array, bounds: Array) -> bool:
    sound = True
    for at in range(len(row)):
        # A comparison with NaN is false, which is what is wanted here.
        sound &= abs(row[at]) <= bounds[at]
    return sound


@njit(cache=True)
def add_products(table: Array, at: int, vector: Array, out: Array) -> None:
    """Adds to each number in ``out`` the product of a vector with that of the row, which begins at a column: summed up
    in order, so that it does not depend on where in the table the row lies."""
    for row in range(len(out)):
        product = 0.0
        for k in range(len(vector)):
            product += table[row, at + k] * vector[k]
        out[row] += product


@njit(cache=True, nogil=True)  # what was learned before is written meanwhile
def learn(
    users: Array,
    items: Array,
    ys: Array,
    user_rows: Array,
    item_rows: Array,
    user_known: Array,
    item_known: Array,
    user_heirs: Array,
    item_heirs: Array,
    biases: Array,
    vectors: Array,
    mean: Array,
    n_factors: int,
    vector_at: int,
    of_biases: tuple[int, Array, Array],
    of_vectors: tuple[int, Array, Array],
    iteration: int,
    l2_bias: float,
    l2: float,
    clip: float,
    bounds: Array,
    mean_bound: float,
    predictions: Array,
    learned: Array,
) -> int:
    """Predicts and learns records, one after the other; returns how many rows were begun.

    Parameters
    ----------
    users, items
        Where the rows of each record lie, shape ``(n,)``.
    user_rows, item_rows
        The rows, shape ``(any, width)``: the bias and its slots, if there are biases, then the vector, if there are
        factors, and its slots. Written.
    user_known, item_known
        Which rows have weights. Written.
    user_heirs, item_heirs
        For each row that is not known, which row it begins with if that is known by then; -1 for none.
    biases, vectors
        Initial weights for new rows in the order they come, the user's before the item's: shapes ``(new,)`` and
        ``(new, n_factors)``.
    mean
        The number of ratings so far, and their mean; empty where the model has none. Written.
    vector_at
        The column of the vectors; 0 where rows have no biases.
    of_biases, of_vectors
        The optimisers: which it is, its options, and its learning rates for the steps to come, shape ``(n,)``.
    iteration
        How many steps the optimisers have made.
    bounds
        Of each column, the largest absolute value that is sound, shape ``(width,)``.
    predictions, learned
        To be written: the prediction before each record, and whether it was learned. One that would leave its bounds is
        not, and changes nothing. Shape ``(n,)``.
    """
    begun, steps = 0, 0
    width = user_rows.shape[1]
    gradients = np.empty(n_factors)
    bias_gradient = np.empty(1)
    new_user, new_item = np.empty(width), np.empty(width)
    old_user, old_item = np.empty(width), np.empty(width)
    bias_optimizer, bias_options, bias_rates = of_biases
    optimizer, options, rates = of_vectors
    has_mean, has_bias = len(mean) > 0, vector_at > 0
    for place in range(len(users)):
        u, i, y = users[place], items[place], ys[place]
        fresh = 0
        user, item = user_rows[u], item_rows[i]
        if not user_known[u]:
            heir = user_heirs[u]
            if heir >= 0 and user_known[heir]:
                old_user[:] = user_rows[heir]
            else:
                _begin(old_user, biases[begun], vectors[begun], vector_at)
                fresh += 1
            user = old_user
        if not item_known[i]:
            heir = item_heirs[i]
            if heir >= 0 and item_known[heir]:
                old_item[:] = item_rows[heir]
            else:
                _begin(old_item, biases[begun + fresh], vectors[begun + fresh], vector_at)
                fresh += 1
            item = old_item

        product = _dot(user, item, vector_at, n_factors)
        prediction, count_now, mean_now, base = product, 0.0, 0.0, product
        if has_mean:
            count_now = mean[0] + 1.0
            mean_now = mean[1] + (1.0 / count_now) * (y - mean[1])
            prediction, base = mean[1] + user[0] + item[0], mean_now + user[0] + item[0]
            if n_factors > 0:
                prediction, base = prediction + product, base + product
        predictions[place] = prediction
        gradient = 2.0 * (base - y)
        if gradient > clip:
            gradient = clip
        if gradient < -clip:
            gradient = -clip

        if has_bias:
            rate = _rate(bias_optimizer, bias_options, bias_rates[steps], iteration + steps)
            bias_gradient[0] = gradient + l2_bias * user[0]
            _step(bias_optimizer, bias_options, rate, user, new_user, 0, bias_gradient)
            bias_gradient[0] = gradient + l2_bias * item[0]
            _step(bias_optimizer, bias_options, rate, item, new_item, 0, bias_gradient)
        if n_factors > 0:
            rate = _rate(optimizer, options, rates[steps], iteration + steps)
            for f in range(n_factors):
                gradients[f] = gradient * item[vector_at + f] + l2 * user[vector_at + f]
            _step(optimizer, options, rate, user, new_user, vector_at, gradients)
            for f in range(n_factors):
                gradients[f] = gradient * user[vector_at + f] + l2 * item[vector_at + f]
            _step(optimizer, options, rate, item, new_item, vector_at, gradients)

        learned[place] = abs(mean_now) <= mean_bound and _bounded(new_user, bounds) and _bounded(new_item, bounds)
        if learned[place]:
            user_rows[u, :] = new_user
            item_rows[i, :] = new_item
            user_known[u] = item_known[i] = True
            begun += fresh
            steps += 1
            if has_mean:
                mean[0], mean[1] = count_now, mean_now
    return begun


@njit(cache=True)
def running_mean(values: Array, n: float, mean: float) -> tuple[float, float]:
    """The number and the mean of all values, ``n`` of which had a ``mean``: updated value by value, as River does."""
    for value in values:
        n += 1.0
        mean += (1.0 / n) * (value - mean)
    return n, mean


@njit(cache=True)
def favour(slots: Array, ages: Array, popularity: Array) -> None:
    """Adds events to popularities, which are ``log2`` of sums of powers of two: without overflow. Written in place."""
    for event in range(len(slots)):
        a, b = popularity[slots[event]], ages[event]
        high, low = max(a, b), min(a, b)
        popularity[slots[event]] = high + math.log2(1.0 + 2.0 ** (low - high))


@njit(cache=True)
def meet(users: Array, numbers: Array, items: Array, starts: Array, lengths: Array, size: int) -> None:
    """Events into histories, of which the last ``size`` items stay: an item that is met again goes to the end.

    Parameters
    ----------
    users, numbers
        Of each event, whose history it goes to, and its item.
    items
        All histories. Written.
    starts, lengths
        Where each begins, and how long it is; there is room for what comes. Lengths are written.
    """
    for event in range(len(users)):
        user, number = users[event], numbers[event]
        start, length = starts[user], lengths[user]
        if length > size:  # it was smaller when it was stored
            for at in range(size):
                items[start + at] = items[start + at + length - size]
            length = size
        place = length - 1
        while place >= 0 and items[start + place] != number:
            place -= 1
        if place < 0:
            if length < size:
                length += 1
                place = length - 1
            else:
                place = 0
        for at in range(start + place, start + length - 1):
            items[at] = items[at + 1]
        items[start + length - 1] = number
        lengths[user] = length


@njit(cache=True)
def move(users: Array, places: Array, items: Array, starts: Array, lengths: Array) -> None:
    """Seen to other places, where nothing is. ``items`` and ``starts`` are written."""
    for at in range(len(users)):
        user, place = users[at], places[at]
        for item in range(lengths[user]):
            items[place + item] = items[starts[user] + item]
        starts[user] = place


@njit(cache=True)
def json_sizes(starts: Array, lengths: Array, items: Array, ends: Array) -> Array:
    """How many bytes :func:`write_json` writes of each history."""
    sizes = np.empty(len(starts), dtype=np.int64)
    for at in range(len(starts)):
        size = max(lengths[at], 1) + 1  # brackets, and commas between items
        for item in items[starts[at] : starts[at] + lengths[at]]:
            size += ends[item + 1] - ends[item]
        sizes[at] = size
    return sizes


@njit(cache=True)
def write_json(starts: Array, lengths: Array, items: Array, ends: Array, texts: Array, out: Array) -> None:
    """Seen as arrays of JSON, in a row; the JSON of item ``n`` is in ``texts`` up to ``ends[n + 1]``."""
    # Unsigned: a place that may be counted from the end is looked at twice, for each byte.
    to, one = np.uint64(0), np.uint64(1)
    for at in range(len(starts)):
        out[to] = 91  # [
        to += one
        for item in items[starts[at] : starts[at] + lengths[at]]:
            for place in range(np.uint64(ends[item]), np.uint64(ends[item + 1])):
                out[to] = texts[place]
                to += one
            out[to] = 44  # ,
            to += one
        if lengths[at] > 0:
            to -= one
        out[to] = 93  # ]
        to += one


@njit(cache=True)
def look_up(table: Array, places: Array, known: Array, hashes: Array, text: Array, lengths: Array) -> Array:
    """The numbers of texts, -1 of those that are not known.

    Parameters
    ----------
    table
        Hashes and numbers, open addressing with linear probing: shape ``(a power of two, 2)``, a number plus one or,
        where there is none, 0.
    places
        By number, where its text begins in ``known``, and its length: shape ``(any, 2)``.
    hashes, text, lengths
        The hash of each, their bytes one behind the other, and their lengths.
    """
    # In three rounds, so that waits for memory overlap.
    numbers, firsts = np.empty(len(hashes), dtype=np.intp), np.empty(len(hashes), dtype=np.int64)
    mask = len(table) - 1
    for place in range(len(hashes)):
        at = hashes[place] & mask
        while table[at, 1] > 0 and table[at, 0] != hashes[place]:
            at = (at + 1) & mask
        numbers[place] = table[at, 1] - 1
    for place in range(len(hashes)):
        number = numbers[place]
        firsts[place] = places[number, 0] if number >= 0 and places[number, 1] == lengths[place] else -1
    start = 0
    for place in range(len(hashes)):
        if numbers[place] >= 0 and not _same(known, firsts[place], text, start, lengths[place]):
            # Another text has this hash.
            at = hashes[place] & mask
            while table[at, 1] > 0:
                number = table[at, 1] - 1
                first = places[number, 0] if places[number, 1] == lengths[place] else -1
                if table[at, 0] == hashes[place] and _same(known, first, text, start, lengths[place]):
                    break
                at = (at + 1) & mask
            numbers[place] = table[at, 1] - 1
        start += lengths[place]
    return numbers


@njit(cache=True)
def _same(left: Array, left_at: int, right: Array, right_at: int, length: int) -> bool:
    """Whether two stretches of bytes are the same; not if one begins nowhere."""
    if left_at < 0:
        return False
    same = True
    for at in range(length):
        same &= left[left_at + at] == right[right_at + at]
    return same


@njit(cache=True)
def enter(table: Array, hashes: Array, numbers: Array) -> None:
    """Numbers into the table that :func:`look_up` reads. There must be room, and they must not be there."""
    mask = len(table) - 1
    for place in range(len(hashes)):
        at = hashes[place] & mask
        while table[at, 1] > 0:
            at = (at + 1) & mask
        table[at, 0] = hashes[place]
        table[at, 1] = numbers[place] + 1


@njit(cache=True)
def leave(table: Array, hashed: int, number: int) -> None:
    """Takes a number out of the table, and moves up what had to stand behind it."""
    mask = len(table) - 1
    gap = hashed & mask
    while table[gap, 1] != number + 1:
        gap = (gap + 1) & mask
    at = (gap + 1) & mask
    while table[at, 1] > 0:
        # It may stand in the gap if the gap is not before the place it belongs to.
        if (at - (table[at, 0] & mask)) & mask >= (at - gap) & mask:
            table[gap, 0] = table[at, 0]
            table[gap, 1] = table[at, 1]
            gap = at
        at = (at + 1) & mask
    table[gap, 1] = 0


@njit(cache=True)
def entries(batch: Array) -> Array:
    """Where the entries of a map lie in what :mod:`udfs.mapstate` gets: name and value, from, to; shape ``(n, 4)``.

    Each is the name's length, four bytes, the highest first, and the name; a byte, which is not 0 where there is a
    value; and the value as the name.
    """
    places, count, at = np.empty((1_024, 4), dtype=np.int64), 0, 0
    while at < len(batch):
        if count == len(places):
            places = np.concatenate((places, np.empty_like(places)))
        for part in (0, 2):
            if part == 2:
                if at >= len(batch) or batch[at] == 0:
                    raise ValueError("a map in Flink's state has a name without a value")
                at += 1
            length = np.int64(0)
            for byte in batch[at : at + 4]:
                length = length << 8 | np.int64(byte)
            places[count, part], places[count, part + 1] = at + 4, at + 4 + length
            at += 4 + int(length)
        count += 1
    if at != len(batch):
        raise ValueError("a map in Flink's state is not of texts and bytes")
    return places[:count]


@njit(cache=True)
def distinct(numbers: Array, slots_of: Array) -> tuple[Array, Array]:
    """Where each number comes first, and for all, which of these it is. ``slots_of`` is -1 by number, and is
    so again."""
    firsts, slots, count = np.empty(len(numbers), dtype=np.intp), np.empty(len(numbers), dtype=np.intp), 0
    for place in range(len(numbers)):
        if slots_of[numbers[place]] < 0:
            slots_of[numbers[place]] = count
            firsts[count] = place
            count += 1
        slots[place] = slots_of[numbers[place]]
    for at in range(count):
        slots_of[numbers[firsts[at]]] = -1
    return firsts[:count], slots


@njit(cache=True)
def add_pairs(table: Array, pairs: Array, new: Array) -> None:
    """Enters numbers above 0 into a table of open addressing, and tells which were not there, of the same the first.

    There must be room. All are uint64, but ``new``, which is False before.
    """
    # By the upper bits of a product with an odd factor near the golden ratio (Knuth, The Art of Computer Programming,
    # volume 3, 6.4).
    mask, bits, factor = np.uint64(len(table) - 1), np.uint64(64), np.uint64(0x9E3779B97F4A7C15)
    while 1 << int(np.uint64(64) - bits) < len(table):
        bits -= np.uint64(1)
    for place in range(len(pairs)):
        at = pairs[place] * factor >> bits
        while table[at] != np.uint64(0) and table[at] != pairs[place]:
            at = (at + np.uint64(1)) & mask
        if table[at] == np.uint64(0):
            table[at] = pairs[place]
            new[place] = True


@njit(cache=True)
def sift(
    table: Array,
    known_times: Array,
    known_users: Array,
    known_bounds: Array,
    known_text: Array,
    count: int,
    hashes: Array,
    users: Array,
    user_bounds: Array,
    ids: Array,
    id_bounds: Array,
    times: Array,
    remembered_from: Array,
    horizon: int,
    never: int,
    entries: Array,
    firsts: Array,
) -> tuple[int, int]:
    """Takes up event ids, one after the other: see :class:`~udfs.duplicates.EventIds`, whose arrays come first, with
    room for all, and of which so many entries are used. ``entries`` and ``firsts`` are written.

    Returns
    -------
    How many entries are used then, and how many had been forgotten and are known again.
    """
    mask, again = len(table) - 1, 0
    for place in range(len(hashes)):
        user_at, id_at = user_bounds[place], id_bounds[place]
        user_length, id_length = user_bounds[place + 1] - user_at, id_bounds[place + 1] - id_at
        at, entry = hashes[place] & mask, -1
        while table[at, 1] > 0:
            known = table[at, 1] - 1
            start = known_bounds[known]
            if (
                table[at, 0] == hashes[place]
                and known_users[known] == user_length
                and known_bounds[known + 1] - start == user_length + id_length
                and _same(known_text, start, users, user_at, user_length)
                and _same(known_text, start + user_length, ids, id_at, id_length)
            ):
                entry = known
                break
            at = (at + 1) & mask
        if entry < 0:
            entry = count
            count += 1
            table[at, 0], table[at, 1] = hashes[place], entry + 1
            start = known_bounds[entry]
            for byte in range(user_length):
                known_text[start + byte] = users[user_at + byte]
            for byte in range(id_length):
                known_text[start + user_length + byte] = ids[id_at + byte]
            known_bounds[entry + 1] = start + user_length + id_length
            known_users[entry] = user_length
            known_times[entry] = times[place]
        elif known_times[entry] == never:
            again += 1
            known_times[entry] = times[place]
        else:
            first = known_times[entry]
            if abs(times[place] - first) <= horizon and first >= remembered_from[place]:
                firsts[place] = first
            else:
                known_times[entry] = max(first, times[place])
        entries[place] = entry
    return count, again
