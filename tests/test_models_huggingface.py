"""transformers is imported without scipy.optimize, and what would have used it still can."""

import subprocess
import sys


def says(code: str) -> str:
    """What a fresh process prints."""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    return found.stdout.strip() or found.stderr


def test_scipy_stays_outside_and_the_loss_that_wants_it_finds_it() -> None:
    # costs [[1, 2], [0, 5]]: rows 0, 1 take columns 1, 0 for 2 + 0 = 2, not 1 + 5 = 6
    code = """
import sys
import truing.models.roles
from truing.models.huggingface import PreTrainedModel
print("scipy.optimize" in sys.modules, "scipy.linalg" in sys.modules)
from transformers.loss.loss_for_object_detection import linear_sum_assignment
print(*linear_sum_assignment([[1, 2], [0, 5]])[1].tolist())
import scipy.optimize
print(scipy.optimize.linear_sum_assignment is not linear_sum_assignment, hasattr(scipy.optimize, "minimize"))
"""
    assert says(code).split("\n") == ["False False", "1 0", "True True"]


def test_scipy_that_is_there_already_is_left_alone() -> None:
    code = """
import scipy.optimize
from truing.models.huggingface import PreTrainedModel
from transformers.loss.loss_for_object_detection import linear_sum_assignment
print(linear_sum_assignment is scipy.optimize.linear_sum_assignment)
"""
    assert says(code) == "True"
