"""Token sequences of one user packed into a row in which every distinct token stands once.

The sequences form a prefix tree; the row is the tree in depth-first order. A token's position is its depth, it sees its
ancestors and itself: just what it would see in its own unpacked sequence. Positions restart at every branch.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A prefix tree of token sequences, flattened."""

    tokens: tuple[int, ...]
    """T token ids in depth-first order."""
    positions: tuple[int, ...]
    """T depths, the root's being 0."""
    last: tuple[int, ...]
    """T indices: the last token of each token's subtree. Token j is seen by token i when j <= i <= last[j]."""
    paths: tuple[tuple[int, ...], ...]
    """For each sequence, in the order given, the indices of its tokens in the row."""

    def __len__(self) -> int:
        return len(self.tokens)


def pack(sequences: Sequence[Sequence[int]]) -> Row:
    """Pack sequences into one row. Each needs at least one token."""
    tokens: list[int] = []
    positions: list[int] = []
    last: list[int] = []
    paths: list[tuple[int, ...]] = [()] * len(sequences)
    path: list[int] = []  # indices of the previous sequence, which shares the longest prefix in sorted order
    previous: Sequence[int] = ()
    for which in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        sequence = sequences[which]
        shared = common_prefix(previous, sequence)
        for index in path[shared:]:
            last[index] = len(tokens) - 1
        del path[shared:]
        for position in range(shared, len(sequence)):
            path.append(len(tokens))
            tokens.append(sequence[position])
            positions.append(position)
            last.append(-1)
        paths[which] = tuple(path)
        previous = sequence
    for index in path:
        last[index] = len(tokens) - 1
    return Row(tuple(tokens), tuple(positions), tuple(last), tuple(paths))


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share at their start."""
    for index, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return index
    return min(len(a), len(b))


def shared_beginnings(sequences: Sequence[Sequence[int]]) -> list[int]:
    """Of sequences in order, how many tokens each shares with the one before; the first none."""
    return [0, *map(common_prefix, sequences, sequences[1:])][: len(sequences)]


@dataclass(frozen=True, slots=True)
class Block:
    """Queries [start, end) of a row, and the ranges of their common ancestors; one attention call each."""

    start: int
    end: int
    ancestors: tuple[tuple[int, int], ...]
    is_chain: bool
    """Whether each query token is the next one's parent, so that the mask among them is plainly causal."""


def attention_blocks(row: Row, dense_limit: int = 192) -> list[Block]:
    """Cut a row into blocks that pay for few masked pairs: a subtree of up to `dense_limit` tokens is one block.

    An unbranched run that is longer is cut into pieces of that length, each the next one's ancestor; one at the root is
    a single block, since causal attention without ancestors skips what is masked.
    """
    return _blocks(row.last, 0, len(row), (), dense_limit)


def _blocks(
    last: Sequence[int], start: int, end: int, ancestors: tuple[tuple[int, int], ...], limit: int
) -> list[Block]:
    """Blocks of the sibling subtrees that fill [start, end)."""
    blocks: list[Block] = []
    pending = start  # small siblings from here on wait to share a block
    at = start
    while at < end:
        after = last[at] + 1
        if after - pending <= limit:
            at = after
            continue
        if pending < at:
            blocks.append(_block(last, pending, at, ancestors))
        if after - at <= limit:
            pending = at
        else:
            chain_end = _chain_end(last, at)
            blocks += _chain_blocks(at, chain_end, ancestors, limit)
            blocks += _blocks(last, chain_end, after, (*ancestors, (at, chain_end)), limit)
            pending = after
        at = after
    if pending < end:
        blocks.append(_block(last, pending, end, ancestors))
    return blocks


def _chain_blocks(start: int, end: int, ancestors: tuple[tuple[int, int], ...], limit: int) -> list[Block]:
    """Blocks of the unbranched run [start, end)."""
    if not ancestors:
        return [Block(start, end, (), True)]
    return [
        Block(at, min(at + limit, end), (*ancestors, (start, at)) if at > start else ancestors, True)
        for at in range(start, end, limit)
    ]


def _chain_end(last: Sequence[int], start: int) -> int:
    """One past the last token of the unbranched run that begins at `start`."""
    end = start + 1
    while end <= last[start] and last[end] == last[start]:
        end += 1
    return end


def _block(last: Sequence[int], start: int, end: int, ancestors: tuple[tuple[int, int], ...]) -> Block:
    return Block(start, end, ancestors, _chain_end(last, start) >= end)
