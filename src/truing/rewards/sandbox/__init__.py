"""Running a model's code for a reward, shut in. ``sandbox.py`` has the way in; docs/sandbox.md says what holds and what does not."""

from __future__ import annotations

from truing.rewards.sandbox.jobs import Job, Limits, Outcome, Ran
from truing.rewards.sandbox.sandbox import Sandbox, shared

__all__ = ["Job", "Limits", "Outcome", "Ran", "Sandbox", "shared"]
