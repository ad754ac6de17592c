"""Preference losses: one number a pair."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Negative log-likelihood that ``chosen`` beats ``rejected``: ``-log sigmoid(chosen - rejected - margin)``.

    Args:
        chosen, rejected: scores (or beta-scaled log-ratios: then this is DPO), one a pair.
        margin: how much better the chosen one should be, in units of score.

    Source: Bradley and Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), equation 1; margin: Touvron et al. 2023, equation 2.

    >>> import torch
    >>> bradley_terry(torch.tensor([1.0]), torch.tensor([1.0]))  # a tie costs log 2
    tensor([0.6931])
    """
    return -F.logsigmoid(chosen - rejected - margin)


def centering(chosen: Tensor, rejected: Tensor) -> Tensor:
    """``(chosen + rejected)^2``: Bradley-Terry leaves the zero of the scores free, this pins it.

    Source: Eisenstein et al. 2023 (arXiv 2312.09244), section 3.
    """
    return (chosen + rejected).square()
