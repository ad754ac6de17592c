"""A batch of sequences laid end to end: no padding work, but in attention that is not compiled.

Shapes: N tokens in all, B sequences, T the longest of them; sequence b has the tokens from ``bounds[b]`` to ``bounds[b + 1]``. `Pack.grid` and `Pack.flat`
move between the packed layout ``[N, ...]`` and the right-padded one ``[B, T, ...]`` (causal attention over right padding needs no mask).
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from truing.errors import ModelError

LIKE = 0.6  # sequences that attend together are at least this share of the longest of them
FEW = 256  # tokens that are not worth a grid of their own


class Grid(NamedTuple):
    """Some sequences of a pack, right-padded to the longest of them: ``cells`` are those that are real, ``tokens`` what stands in them.

    Both are None when nothing is padded: the grid is then the whole pack.
    """

    rows: int
    longest: int
    cells: Tensor | None
    tokens: Tensor | None


class Pack:
    """Token ids of B sequences, end to end, and what frozen layers made of them (computed once, shared by all roles)."""

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        if not sequences or any(len(s) == 0 for s in sequences):
            raise ModelError(f"a batch needs at least one sequence and no empty one; got lengths {[len(s) for s in sequences][:8]}")
        self.lengths = [len(s) for s in sequences]
        self.ids_N = torch.tensor([token for s in sequences for token in s], dtype=torch.long)
        self.trunk: dict[Hashable, Tensor] = {}
        self._lay_out()

    def _lay_out(self) -> None:
        self._grids: list[Grid] | None = None
        self._there: Pack | None = None
        lengths = torch.tensor(self.lengths)
        self.bounds = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        self.starts = self.bounds[:-1].tolist()
        longest = max(self.lengths)
        time = torch.arange(longest)
        real = time < lengths[:, None]
        self.shape = (len(self.lengths), longest)
        self.is_rectangle = bool(real.all())
        self.positions_N = time.expand(self.shape)[real]
        self._real_flat = real.flatten().nonzero().squeeze(-1)
        self._grid_rows = torch.where(real, self.bounds[:-1, None] + time, 0).flatten()

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> int:
        return len(self.ids_N)

    def on(self, device: torch.device) -> Pack:
        """The same pack to be read on a device, with the same trunk; itself where its tensors are there already."""
        if device == self.ids_N.device:
            return self
        if self._there is None or self._there.ids_N.device != device:
            self._there = there = copy.copy(self)
            for name in ("ids_N", "positions_N", "_real_flat", "_grid_rows"):
                setattr(there, name, getattr(self, name).to(device))
            there._grids = [Grid(g.rows, g.longest, *(None if x is None else x.to(device) for x in g[2:])) for g in self.grids()]
        return self._there

    def grid(self, x_N: Tensor) -> Tensor:
        """``[N, ...] -> [B, T, ...]``; cells past a sequence's end hold some other token's row and must not be read."""
        rows = x_N if self.is_rectangle else x_N.index_select(0, self._grid_rows)
        return rows.reshape(*self.shape, *x_N.shape[1:])

    def flat(self, x_BT: Tensor) -> Tensor:
        """``[B, T, ...] -> [N, ...]``, dropping the padding."""
        rows = x_BT.reshape(-1, *x_BT.shape[2:])
        return rows if self.is_rectangle else rows.index_select(0, self._real_flat)

    def grids(self) -> list[Grid]:
        """All sequences, those of like length together, so that attention pads little."""
        if self._grids is None:
            self._grids = [Grid(*self.shape, None, None)] if self.is_rectangle else [self._grid_of(rows) for rows in self._alike()]
        return self._grids

    def _alike(self) -> list[list[int]]:
        found: list[list[int]] = []
        longest = few = 0
        for row in sorted(range(len(self)), key=lambda r: -self.lengths[r]):
            length = self.lengths[row]
            if not found or (length < LIKE * longest and few >= FEW):
                found.append([])
                longest, few = length, 0
            found[-1].append(row)
            few += length
        return found

    def _grid_of(self, rows: list[int]) -> Grid:
        lengths, starts = (torch.tensor([of[r] for r in rows]) for of in (self.lengths, self.starts))
        time = torch.arange(int(lengths.max()))
        real, place = time < lengths[:, None], starts[:, None] + time
        return Grid(len(rows), len(time), real.flatten().nonzero().squeeze(-1), place[real])

    def spans(self, first: Sequence[int], last: Sequence[int]) -> Tensor:
        """Packed indices of positions ``first[b] .. last[b] - 1`` of every sequence, in order."""
        return torch.cat([torch.arange(s + a, s + b) for s, a, b in zip(self.starts, first, last, strict=True)])

    def at(self, places: Sequence[Sequence[int]]) -> Tensor:
        """Packed indices of some positions of every sequence, in order."""
        return torch.tensor([s + t for s, place in zip(self.starts, places, strict=True) for t in place], dtype=torch.long)

    def cut(self, budget: int) -> list[range]:
        """Sequences in order, in parts of at most `budget` tokens; a longer one stands alone."""
        parts: list[range] = []
        room = -1
        for row, length in enumerate(self.lengths):
            if length > room:
                parts.append(range(row, row))
                room = budget
            parts[-1] = range(parts[-1].start, row + 1)
            room -= length
        return parts

    def last(self) -> Tensor:
        """Packed index of every sequence's last token, ``[B]``."""
        return torch.tensor([s + n - 1 for s, n in zip(self.starts, self.lengths, strict=True)])

    @classmethod
    def joined(cls, packs: Sequence[Pack]) -> Pack:
        """All sequences of several packs, in order, with what the frozen layers made of them."""
        whole = object.__new__(cls)
        whole.lengths = [n for pack in packs for n in pack.lengths]
        whole.ids_N = torch.cat([pack.ids_N for pack in packs])
        whole.trunk = {key: torch.cat([pack.trunk[key] for pack in packs]) for key in packs[0].trunk}
        whole._lay_out()
        return whole

    def select(self, rows: Sequence[int]) -> Pack:
        """The pack of some of the sequences; what the frozen layers made is carried over, not computed again."""
        part = object.__new__(Pack)
        part.lengths = [self.lengths[r] for r in rows]
        index = torch.cat([torch.arange(self.starts[r], self.starts[r] + self.lengths[r]) for r in rows])
        part.ids_N = self.ids_N[index]
        part.trunk = {key: value[index] for key, value in self.trunk.items()}
        part._lay_out()
        return part
