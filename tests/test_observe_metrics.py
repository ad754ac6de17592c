from __future__ import annotations

from pathlib import Path

import pytest

from truing.errors import ConfigError
from truing.observe.metrics import METRICS, TIMINGS, Healthy, lookup, markdown

OF_PPO = """part/rm part/excess_tokens(150) monitor/gold_correlation reward/score_std reward/clipped_share reward/normaliser_mean reward/normaliser_std
tokens/truncated_share tokens/std value/error value/clip_share policy/updates policy/stopped kl/loss sampler/weight_mean sampler/capped_share
seconds/trunk""".split()
NAMES = """loss eval/loss grad/norm lr tokens/trained eval/eos_share accuracy score/mean score/std margin/mean eval/accuracy eval/ece
reward/proxy reward/failed_share reward/total monitor/gold monitor/vader kl/sequence kl/k3_sequence kl/token kl/coef policy/loss
policy/approx_kl policy/clip_share policy/ratio_mean policy/ratio_max policy/entropy policy/first_ratio_error value/loss
value/explained_variance advantage/std tokens/mean tokens/eos_share text/distinct_2 sampler/mismatch seconds/generate
seconds/score seconds/reference seconds/update seconds/step tokens_per_second memory/peak_mib""".split()


OF_GRPO = """groups/count groups/varied_share groups/solved_share groups/hopeless_share groups/used_share curriculum/skipped_solved
curriculum/skipped_hopeless curriculum/solve_rate reward/hidden_gap text/repetition""".split()


@pytest.mark.parametrize("name", [*NAMES, *OF_PPO, *OF_GRPO])
def test_every_logged_name_is_defined(name: str) -> None:
    metric = lookup(name)
    assert metric.definition and metric.unit and metric.source and set(metric.methods) <= {"sft", "reward", "ppo", "grpo"}


def test_families_of_names() -> None:
    rows = {"part/rm": "part/<name>", "monitor/gold": "monitor/<name>", "monitor/gold_correlation": "monitor/<name>_correlation", "monitor/_correlation": "monitor/<name>"}
    assert {name: lookup(name).name for name in rows} == rows
    for name in ("part/", "reward/rm", "parts/rm", "kl/gold_correlation"):
        with pytest.raises(ConfigError):
            lookup(name)


def test_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'policy/clip_shar' is not in the table.*did you mean 'policy/clip_share'"):
        lookup("policy/clip_shar")
    with pytest.raises(ConfigError, match="known: "):
        lookup("zzzzqqqq")
    with pytest.raises(ConfigError):
        lookup("monitor/")  # the prefix alone names no judge


def test_timings_are_what_depends_on_the_machine() -> None:
    assert {n for n in NAMES if lookup(n).name in TIMINGS} == set(NAMES[-7:])


def test_healthy_range_is_inclusive_and_readable() -> None:
    both, low = Healthy(0.0, 0.3, "x"), Healthy(0.1, None, "x")
    assert [v in both for v in (-1e-9, 0.0, 0.3, 0.31)] == [False, True, True, False]
    assert [v in low for v in (0.09, 1e9)] == [False, True]
    assert (both.range, low.range, Healthy(None, 2, "x").range, Healthy(0, 0, "x").range) == ("0 to 0.3", "at least 0.1", "at most 2", "exactly 0")


def test_the_page_of_the_docs_is_current() -> None:
    page = markdown()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) == len(METRICS)
    assert all(row.count(" | ") == 6 for row in rows)  # seven cells each
    written = Path(__file__).parents[1] / "docs" / "metrics.md"
    assert written.read_text(encoding="utf-8") == page, "run: python -m truing.observe.metrics > docs/metrics.md"
