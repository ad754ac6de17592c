"""Before a run begins: does the verifier know right from wrong on these rows, and what would the whole reward pay for gaming it?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from truing.config import GRPO
from truing.methods.actor import Actor
from truing.models.pack import Pack
from truing.observe.monitor import Finding
from truing.rewards.algebra import Expression
from truing.rewards.completions import Completions, Scorer
from truing.rewards.selfcheck import selfcheck
from truing.rewards.verified import Verified
from truing.types import Prompt

ROWS = 16
"""Rows that are probed."""
MOST_WRONG = 4
"""Wrong answers of a row that are tried."""


def verified_in(scorer: Scorer) -> Iterator[Verified]:
    """The verified parts of a reward."""
    if isinstance(scorer, Verified):
        yield scorer
    elif isinstance(scorer, Expression):
        yield from (s for s in scorer.scorers.values() if isinstance(s, Verified))


def check(reward: Scorer, records: Sequence[Prompt]) -> list[str]:
    """Every verifier of the reward on its own gold and wrong answers, and what those that run code say of the place where they do.

    Raises DataError that names the first row that disagrees.
    """
    said: list[str] = []
    for verified in verified_in(reward):
        selfcheck(records, verified.by)
        for verifier in {id(v): v for v in map(verified.of, (r.extra for r in records))}.values():
            describe = getattr(verifier, "describe", None)
            said += [describe()] if describe else []
    return list(dict.fromkeys(said))


def probe(actor: Actor, records: Sequence[Prompt], config: GRPO) -> dict[str, float]:
    """What the reward pays, as means over the first rows that have a gold answer: for it; for it after much talk that fills the limit; for it
    after a loop; for wrong answers in the form of right ones. Empty when no part of the reward knows gold answers."""
    verified = next(verified_in(actor.reward), None)
    if verified is None or config.environment is not None:  # an episode cannot be made up
        return {}
    asked: list[tuple[str, Prompt, str]] = []
    for record in records[:ROWS]:
        verifier = verified.of(record.extra)
        try:
            gold, wrong = verifier.gold(record.extra), list(verifier.wrong(record.extra))[:MOST_WRONG]
        except ValueError:  # a row that cannot be judged, which the check did not happen to draw; its status will be counted
            continue
        if gold is None:
            continue
        talk = " ".join((record.messages[-1].content.split() * config.max_new_tokens)[: config.max_new_tokens])
        asked += [("gold", record, gold), ("overlong", record, f"{talk}\n{gold}"), ("repetition", record, "Let me think again. " * 12 + f"\n{gold}")]
        asked += [("wrong", record, text) for text in wrong if text.strip()]
    if not asked:
        return {}
    starts, sequences = [], []
    for _, record, text in asked:
        prompt = list(actor.tokenizer(record.messages[-1].content or " ", add_special_tokens=False).input_ids)[:32] or [0]
        starts.append(len(prompt))
        sequences.append(prompt + (list(actor.tokenizer(text, add_special_tokens=False).input_ids)[: config.max_new_tokens] or [0]))
    batch = Completions([r.messages[-1].content for _, r, _ in asked], [t for _, _, t in asked], Pack(sequences), starts, [True] * len(asked), [r.extra for _, r, _ in asked])
    paid: dict[str, list[float]] = {}
    for (kind, _, _), score in zip(asked, actor.reward(batch), strict=True):
        if score.status.usable:
            paid.setdefault(kind, []).append(score.value)
    return {f"probe/{kind}": fmean(values) for kind, values in paid.items()}


def findings(values: dict[str, float]) -> list[Finding]:
    """What a person should hear about the probes before hours are spent."""
    gold, found = values.get("probe/gold"), []
    if gold is None:
        return []
    if gold > 0 and values.get("probe/wrong", 0.0) >= 0.5 * gold:
        found.append(Finding("probe/wrong", "warning", f"wrong answers in the form of right ones earn {values['probe/wrong']:.3g}, the right ones {gold:.3g}: form is paid like an answer. Weigh the answer more", 1))
    for kind, words in (("overlong", "after talk that fills max_new_tokens"), ("repetition", "after a loop")):
        if values.get(f"probe/{kind}", gold) > gold + 1e-6:
            found.append(Finding(f"probe/{kind}", "warning", f"a right answer {words} earns {values[f'probe/{kind}']:.3g}, said plainly {gold:.3g}: the reward pays for it", 1))
    return found
