"""Two grids of Sutton and Barto (2nd ed.) whose values are printed in the book: decision processes to solve, not to walk in."""

from __future__ import annotations

from truing.envs.table import MOVES, Outcome, Table, beside, certain, to_mdp
from truing.maths.planning import Mdp


def five_by_five() -> Mdp:
    """The 5 x 5 grid with two jumps; it never ends. Actions: 0 up, 1 right, 2 down, 3 left. Its discount is 0.9.

    Every action in A = (0, 1) pays 10 and leads to A' = (4, 1); every action in B = (0, 3) pays 5 and leads to B' = (2, 3). A step over the edge stays and
    pays -1; every other step pays 0. Under the uniform policy v(A) = 8.8, less than 10, because from A' one runs into the edge; the optimal v(A) is
    ``10 / (1 - 0.9^5)`` = 24.4: the jump and four steps back, for ever.

    Source: examples 3.5 (uniform policy) and 3.8 (optimal values).
    """
    jumps = {1: certain(21, 10.0), 3: certain(13, 5.0)}

    def outcome(state: int, action: int) -> tuple[Outcome, ...]:
        if state in jumps:
            return jumps[state]
        there = beside(5, 5, state, action)
        return certain(state, -1.0) if there is None else certain(there, 0.0)

    return to_mdp([[outcome(s, a) for a in range(len(MOVES))] for s in range(25)])


def four_by_four() -> Mdp:
    """The 4 x 4 grid whose top left and bottom right corners are terminal; every step pays -1, a step over the edge stays. Its discount is 1.

    Minus the value of a state under the uniform policy is the expected number of steps to a corner: 14, 18, 20 or 22.

    Source: example 4.1 and figure 4.1.
    """
    table: Table = [[] if s in (0, 15) else [certain(s if (there := beside(4, 4, s, a)) is None else there, -1.0) for a in range(len(MOVES))] for s in range(16)]
    return to_mdp(table)
