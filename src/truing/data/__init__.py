"""Data: from files to records, from records to tokens whose trained mask is right by construction."""

from truing.data.batches import by_token_budget, epoch_order, split
from truing.data.check import Report, check, rendered
from truing.data.formats import Dataset, check_disjoint, load, prompt_key, prompt_of
from truing.data.problems import BadRow, OnBad, Problem
from truing.data.read import read_rows
from truing.data.records import Kind
from truing.data.template import Renderer
from truing.data.trained import require_stop, require_trained

__all__ = [
    "BadRow", "Dataset", "Kind", "OnBad", "Problem", "Renderer", "Report", "by_token_budget", "check", "check_disjoint", "epoch_order", "load",
    "prompt_key", "prompt_of", "read_rows", "rendered", "require_stop", "require_trained", "split",
]  # fmt: skip
