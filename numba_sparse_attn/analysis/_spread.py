"""Boolean products of patterns, as bit sets: who is reached through one layer after another.

The products ``R_t = A_t R_(t-1)`` (with skip connections ``R_t = R_(t-1) | A_t R_(t-1)``) start at the
identity; row i of R_t is the set of inputs that query i depends on after t layers. Columns of R never
mix, so it is computed for ``64 * BLOCK_WORDS`` keys at a time, one block a thread, and is never whole.

Within a block, the rows are the leaves of a segment tree: a run of keys of any length is the union of at
most ``2 log2(n)`` of its nodes. With skip connections rows only grow, and a row is looked at again only
where a row that it sees has grown since; a window of 256 over 65,536 tokens connects all of them in
256 layers, in each of which all but a few rows of a block stay as they are.

Measured until all of 65,536 tokens are connected, on two cores: causal 5 s, that window 20 s, bigbird in
blocks of 64 7 s, 64 random keys a query, which form no runs, 71 s.
"""

from __future__ import annotations

import numpy as np

from ..formats.bits import population_count, trailing_zeros
from ..jit import inlined, kernel

__all__ = ["BLOCK_WORDS", "connect_block", "field_block"]

#: Words of a row in a block: a cache line.
BLOCK_WORDS = 8
#: Older than every sweep.
_NEVER = -(1 << 40)


@inlined
def _start(tree, changed_at, base):
    """The identity: every row holds itself."""
    n = len(changed_at)
    for node in range(len(tree)):
        for word in range(BLOCK_WORDS):
            tree[node, word] = np.uint64(0)
    for row in range(n):
        changed_at[row] = _NEVER
    for row in range(base, min(base + 64 * BLOCK_WORDS, n)):
        changed_at[row] = 0
        bit = np.uint64(1) << np.uint64((row - base) % 64)
        node = n + row
        while node >= 1:
            tree[node, (row - base) // 64] |= bit
            node >>= 1


@inlined
def _draw(indptr, starts, stops, base, words):
    """The block's columns of a pattern, ``uint64 [n, BLOCK_WORDS]``."""
    for row in range(len(words)):
        for word in range(BLOCK_WORDS):
            words[row, word] = np.uint64(0)
            first = base + 64 * word
            for run in range(indptr[row], indptr[row + 1]):
                low = max(starts[run], first) - first
                high = min(stops[run], first + 64) - first
                if low < high:
                    ones = ~np.uint64(0) >> np.uint64(64 - (high - low))
                    words[row, word] |= ones << np.uint64(low)


@inlined
def _gather(tree, n, start, stop, row):
    """Unite the rows start .. stop - 1 into `row`."""
    low, high = start + n, stop + n
    while low < high:
        if low & 1:
            for word in range(BLOCK_WORDS):
                row[word] |= tree[low, word]
            low += 1
        if high & 1:
            high -= 1
            for word in range(BLOCK_WORDS):
                row[word] |= tree[high, word]
        low >>= 1
        high >>= 1


@inlined
def _same(one, other):
    for word in range(BLOCK_WORDS):
        if one[word] != other[word]:
            return False
    return True


@inlined
def _sweep(indptr, starts, stops, tree, fresh, limit, since, changed_at, grown, moved):
    """One layer with skip connections: new rows into `fresh`, their numbers into `moved`; how many.

    `since` is the sweep in which this layer was last applied: what grew before it is accounted for.
    Rows that hold all of `limit` cannot grow.
    """
    n = len(changed_at)
    for row in range(n):
        grown[row + 1] = grown[row] + (changed_at[row] >= since)
    count = 0
    for row in range(n):
        if _same(tree[n + row], limit[row]):
            continue
        touched = False
        for run in range(indptr[row], indptr[row + 1]):
            if grown[stops[run]] > grown[starts[run]]:
                if not touched:
                    touched = True
                    for word in range(BLOCK_WORDS):
                        fresh[row, word] = tree[n + row, word]
                _gather(tree, n, starts[run], stops[run], fresh[row])
        if touched and not _same(fresh[row], tree[n + row]):
            moved[count] = row
            count += 1
    return count


@inlined
def _commit(tree, fresh, moved, count, changed_at, sweep):
    """Make grown rows those of the tree; a node that holds them already has ancestors that do."""
    n = len(changed_at)
    for position in range(count):
        row = moved[position]
        changed_at[row] = sweep
        node = n + row
        while node >= 1:
            same = True
            for word in range(BLOCK_WORDS):
                united = tree[node, word] | fresh[row, word]
                same = same and united == tree[node, word]
                tree[node, word] = united
            if same:
                break
            node >>= 1


@inlined
def _product(indptr, starts, stops, tree, fresh, moved):
    """One layer without skip connections: all rows anew; returns how many changed."""
    n = len(fresh)
    count = 0
    for row in range(n):
        for word in range(BLOCK_WORDS):
            fresh[row, word] = np.uint64(0)
        for run in range(indptr[row], indptr[row + 1]):
            _gather(tree, n, starts[run], stops[run], fresh[row])
        if not _same(fresh[row], tree[n + row]):
            moved[count] = row
            count += 1
    return count


@inlined
def _replace(tree, fresh):
    """Make all rows those of the tree."""
    n = len(fresh)
    for row in range(n):
        for word in range(BLOCK_WORDS):
            tree[n + row, word] = fresh[row, word]
    for node in range(n - 1, 0, -1):
        for word in range(BLOCK_WORDS):
            tree[node, word] = tree[2 * node, word] | tree[2 * node + 1, word]


@inlined
def _count_bits(bits, counts, base, amount):
    """Add `amount` to the count of every key whose bit is set."""
    if bits == ~np.uint64(0) and base + 64 <= len(counts):
        # Vectors of additions: full attention over 65,536 tokens counts 4e9 pairs.
        for key in range(base, base + 64):
            counts[key] += amount
        return
    while bits != np.uint64(0):
        key = base + trailing_zeros(bits)
        if key < len(counts):
            counts[key] += amount
        bits &= bits - np.uint64(1)


@kernel
def field_block(
    indptr,
    starts,
    stops,
    limit_indptr,
    limit_starts,
    limit_stops,
    base,
    residual,
    queries,
    tree,
    fresh,
    limit,
    changed_at,
    grown,
    moved,
    by_query,
    by_key,
    first_layer,
):
    """Receptive fields restricted to the keys from `base` on, as changes from layer to layer.

    ``by_query[t, i]`` gets the number of keys that enter the field of query i in layer t, less those that
    leave it; ``by_key[t, j]`` the number of queries whose field key j enters. Of `queries`,
    ``first_layer[place, j]`` gets the layer in which key j is first there. All three come filled: with
    zeros, zeros, and -1.
    """
    layers, depth, n = len(indptr), len(by_query) - 1, len(changed_at)
    _start(tree, changed_at, base)
    _draw(limit_indptr, limit_starts, limit_stops, base, limit)
    for key in range(base, min(base + 64 * BLOCK_WORDS, n)):
        by_query[0, key] += 1
        by_key[0, key] += 1
    for sweep in range(depth + 1):
        if sweep > 0:
            layer = indptr[(sweep - 1) % layers]
            if residual:
                count = _sweep(
                    layer, starts, stops, tree, fresh, limit, sweep - layers, changed_at, grown, moved
                )
            else:
                count = _product(layer, starts, stops, tree, fresh, moved)
            for position in range(count):
                row = moved[position]
                for word in range(BLOCK_WORDS):
                    old, new = tree[n + row, word], fresh[row, word]
                    by_query[sweep, row] += population_count(new) - population_count(old)
                    _count_bits(new & ~old, by_key[sweep], base + 64 * word, 1)
                    _count_bits(old & ~new, by_key[sweep], base + 64 * word, -1)
            if residual:
                _commit(tree, fresh, moved, count, changed_at, sweep)
            else:
                _replace(tree, fresh)
        for place in range(len(queries)):
            for key in range(base, min(base + 64 * BLOCK_WORDS, n)):
                bits = tree[n + queries[place], (key - base) // 64] >> np.uint64((key - base) % 64)
                if bits & np.uint64(1) and first_layer[place, key] < 0:
                    first_layer[place, key] = sweep


@kernel
def connect_block(
    indptr,
    starts,
    stops,
    limit_indptr,
    limit_starts,
    limit_stops,
    goal_indptr,
    goal_starts,
    goal_stops,
    base,
    most,
    tree,
    fresh,
    limit,
    goal,
    changed_at,
    grown,
    moved,
    by_query,
    by_key,
):
    """Sweeps until every row holds its goal, or nothing grows, or `most` are done; keys from `base` on.

    ``by_query[i]`` is raised to the sweep after which row i holds all of its goal in this block, and
    ``by_key[j]`` to that after which all rows hold key j whose goal it is in; to ``most + 1`` where that
    does not happen.
    """
    layers, n = len(indptr), len(changed_at)
    _start(tree, changed_at, base)
    _draw(limit_indptr, limit_starts, limit_stops, base, limit)
    _draw(goal_indptr, goal_starts, goal_stops, base, goal)
    # What of the goal is missing, by row in `goal` itself and by key in `missing`.
    missing = np.zeros(64 * BLOCK_WORDS, np.int64)
    open_rows = 0
    for row in range(n):
        still = np.uint64(0)
        for word in range(BLOCK_WORDS):
            goal[row, word] &= ~tree[n + row, word]
            still |= goal[row, word]
            _count_bits(goal[row, word], missing, 64 * word, 1)
        open_rows += still != np.uint64(0)
    sweep, quiet = 0, 0
    while open_rows > 0 and quiet < layers and sweep < most:
        sweep += 1
        layer = indptr[(sweep - 1) % layers]
        count = _sweep(layer, starts, stops, tree, fresh, limit, sweep - layers, changed_at, grown, moved)
        quiet = 0 if count > 0 else quiet + 1
        for position in range(count):
            row = moved[position]
            before, after = np.uint64(0), np.uint64(0)
            for word in range(BLOCK_WORDS):
                bits = goal[row, word] & fresh[row, word]
                before |= goal[row, word]
                goal[row, word] &= ~bits
                after |= goal[row, word]
                while bits != np.uint64(0):
                    place = 64 * word + trailing_zeros(bits)
                    missing[place] -= 1
                    if missing[place] == 0:
                        by_key[base + place] = max(by_key[base + place], sweep)
                    bits &= bits - np.uint64(1)
            if before != np.uint64(0) and after == np.uint64(0):
                by_query[row] = max(by_query[row], sweep)
                open_rows -= 1
        _commit(tree, fresh, moved, count, changed_at, sweep)
    for row in range(n):
        for word in range(BLOCK_WORDS):
            if goal[row, word] != np.uint64(0):
                by_query[row] = most + 1
    for place in range(64 * BLOCK_WORDS):
        if missing[place] > 0:
            by_key[base + place] = most + 1
