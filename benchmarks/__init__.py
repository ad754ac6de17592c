"""The benchmark suite: Truing and its peers, side by side, in one run (``python -m benchmarks --help``, or ``make bench``).

A *row* is a piece of work; every system that does it sits in a *chair*, a process of its own, and the chairs take turns.
``goals`` says what each row should show, ``rows`` who plays in it, ``table`` writes what was found into docs/performance.md.
"""
