"""Preference losses: one number a pair. Shapes must agree, else ValueError."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from truing.maths import check


def bradley_terry(chosen: Tensor, rejected: Tensor, margin: Tensor | float = 0.0) -> Tensor:
    """Negative log-likelihood that ``chosen`` beats ``rejected``: ``-log sigmoid(chosen - rejected - margin)``.

    Args:
        chosen, rejected: scores, one a pair: a reward model's, or beta times (logp - logp_ref), and then this is DPO.
        margin: how much better the chosen one should be, in units of score; a number, or one a pair.

    Source: Bradley and Terry 1952; Ouyang et al. 2022 (arXiv 2203.02155), equation 1; margin: Touvron et al. 2023
    (arXiv 2307.09288), equation 2; DPO: Rafailov et al. 2023 (arXiv 2305.18290), equation 7.

    >>> import torch
    >>> bradley_terry(torch.tensor([1.0]), torch.tensor([1.0]))  # a tie costs log 2
    tensor([0.6931])
    """
    check.same_shape("bradley_terry", chosen=chosen, rejected=rejected)
    if isinstance(margin, Tensor) and margin.ndim:
        check.same_shape("bradley_terry", chosen=chosen, margin=margin)
    return -F.logsigmoid(chosen - rejected - margin)


def centering(chosen: Tensor, rejected: Tensor) -> Tensor:
    """``(chosen + rejected)^2``: Bradley-Terry leaves the zero of the scores free, this pins it.

    Source: Eisenstein et al. 2023 (arXiv 2312.09244), section 3.

    >>> import torch
    >>> centering(torch.tensor([1.0]), torch.tensor([2.0]))  # 3^2
    tensor([9.])
    """
    check.same_shape("centering", chosen=chosen, rejected=rejected)
    return (chosen + rejected).square()
