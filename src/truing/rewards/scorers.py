"""Scorers: whatever a reward's text names, behind one call, ``scorer(batch) -> list[Score]``.

A failure is a status, never a zero: the sample is left out and counted by whoever asked.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from truing.errors import ConfigError
from truing.models.backbone import Backbone
from truing.models.load import load_tokenizer
from truing.models.roles import open_role, tokenizer_of
from truing.rewards import grammar
from truing.rewards.algebra import Expression, check_dense
from truing.rewards.classifier import Classifier, is_classifier, load_classifier
from truing.rewards.completions import Completions, Scorer
from truing.rewards.episodes import Outcome
from truing.rewards.expression import opened
from truing.rewards.grammar import Atom
from truing.rewards.lines import Lines
from truing.rewards.retokenise import Retokeniser
from truing.rewards.reward_model import At, Learned, LearnedFromText, same_vocabulary
from truing.rewards.service import Service
from truing.rewards.shaping import shaping
from truing.rewards.text_function import Function, Isolated, text_function
from truing.rewards.verified import Verified

__all__ = ["Classifier", "Completions", "Expression", "Function", "Isolated", "Learned", "LearnedFromText", "Scorer", "Service", "find_scorer", "learned_in"]

log = logging.getLogger(__name__)


def find_scorer(
    text: str, *, share: Backbone | None = None, share_base: str | None = None, tokenizer: Any = None, at: At = "last", timeout: float | None = 60.0
) -> Scorer:
    """The scorer behind a reward's text: a folder, hub id, ``module:function``, address, or an expression of these.

    Args:
        share: a backbone that reward models live on where they fit, so that no second one is loaded; others go to its device.
        share_base: the name of its base model, whose tokens the completions are made of.
        tokenizer: the policy's; with it a scorer that reads other tokens is noticed and lines can be found.
        at: where learned rewards stand, see `Learned`.
        timeout: seconds a batch for functions and services; None runs functions in this process, without a limit.

    Raises ConfigError for an expression that cannot be read or a function that cannot be imported, ModelError for a folder or
    hub id that is no reward model.
    """
    tree = opened(text)
    found = grammar.atoms(tree)
    names = grammar.labels(found)
    if tokenizer is None and share_base is not None and any(a.kind == "learned" for a in found):
        tokenizer = load_tokenizer(share_base)
    if at != "last" and not any(a.kind == "learned" for a in found):
        raise ConfigError(f"scores.at={at!r} spreads a learned reward, and {text[:80]!r} has none; use last (a function may give one number a line itself)")
    lines = Lines(tokenizer) if tokenizer is not None else None
    opener = _Opener(share, share_base, tokenizer, lines, at, timeout)
    scorers = {atom: opener.open(atom, names[atom]) for atom in found}
    if isinstance(tree, Atom):
        return scorers[tree]
    check_dense(tree, {atom for atom, scorer in scorers.items() if isinstance(scorer, Learned) and scorer.at != "last"})
    return Expression(tree, scorers, names)


def learned_in(scorer: Scorer) -> Iterator[Learned]:
    """The reward models that read the policy's own tokens, in the order in which the expression names them."""
    if isinstance(scorer, Learned):
        yield scorer
    elif isinstance(scorer, Expression):
        yield from (s for s in scorer.scorers.values() if isinstance(s, Learned))


class _Opener:
    def __init__(self, share: Backbone | None, share_base: str | None, tokenizer: Any, lines: Lines | None, at: At, timeout: float | None) -> None:
        self.share, self.share_base, self.tokenizer, self.lines, self.at, self.timeout = share, share_base, tokenizer, lines, at, timeout
        self.device = "cpu" if share is None else share.device.type

    def open(self, atom: Atom, name: str) -> Scorer:
        if atom.kind == "learned":
            return self._learned(str(atom.arguments[0]), name)
        if atom.kind == "function":
            return text_function(str(atom.arguments[0]), name, self.timeout, self.lines)
        if atom.kind == "http":
            own = atom.arguments[1]
            return Service(name, str(atom.arguments[0]), self.timeout if own is None else float(own), self.lines)
        if atom.kind == "verified":
            return Verified(name, None if atom.arguments[0] is None else str(atom.arguments[0]))
        if atom.kind == "environment":
            return Outcome(name)
        return shaping(atom, name)

    def _learned(self, folder: str, name: str) -> Scorer:
        if is_classifier(folder):
            if self.at != "last":
                raise ConfigError(f"scores.at: {self.at} needs a reward model that Truing trained, and {folder} is a classifier, which gives one number a text; use scores.at: last")
            model, own = load_classifier(folder).to(self.device), load_tokenizer(folder)
            retokenise = Retokeniser(own) if self.tokenizer is None else self._retokeniser(folder, own)
            return Classifier(model, name, frozenset(own.all_special_ids), retokenise)
        retokenise = None
        if self.tokenizer is not None and (Path(folder) / "truing.json").exists():
            retokenise = self._retokeniser(folder, tokenizer_of(folder))
        if retokenise is not None:
            return LearnedFromText(open_role(folder, head=True, on=self.device), name, retokenise)
        return Learned(open_role(folder, share=self.share, share_base=self.share_base, head=True), name, self.at, self.lines)

    def _retokeniser(self, folder: str, own: Any) -> Retokeniser | None:
        """None when the scorer reads the policy's tokens as they are; else one, with a warning, once."""
        if self.tokenizer is None or same_vocabulary(own, self.tokenizer):
            return None
        policy = self.share_base or getattr(self.tokenizer, "name_or_path", "") or "the policy"
        if self.at != "last":
            raise ConfigError(f"scores.at: {self.at} needs a reward model that reads the policy's tokens, and the tokenizer of {folder} differs from that of {policy}; use scores.at: last")
        log.warning("the tokenizer of reward %s differs from that of %s: the text is tokenised again for it alone", folder, policy)
        return Retokeniser(own)
