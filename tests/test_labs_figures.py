"""The labs timeline, gae, clipping and kl: their numbers against arithmetic and enumeration, their figures against their own page."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
import torch

from truing.config import make_options
from truing.errors import ConfigError
from truing.labs import clipping, gae, gae_walk, kl, timeline
from truing.labs.timeline import BOTH, MILESTONES, NETWORK, REWARD


@pytest.mark.parametrize("module", (gae_walk, kl))
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0


def boxes(figure) -> list[tuple[str, float, float, float, float]]:
    """Left, bottom, right and top of every drawn text, in pixels, by the renderer that writes the PNG."""
    from matplotlib.text import Text

    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    texts = [t for axes in figure.axes for t in axes.texts] + list(figure.texts) + [t for t in (figure._suptitle, figure._supxlabel) if t is not None]
    for axes in figure.axes:
        if axes.axison:
            texts += [axes.title, axes._left_title, axes._right_title, axes.xaxis.label, axes.yaxis.label]
            texts += [t for legend in [axes.get_legend()] if legend for t in legend.findobj(Text)]
    texts = {id(t): t for t in texts if t.get_visible() and t.get_text().strip()}.values()
    return [(t.get_text(), *t.get_window_extent(renderer).extents) for t in texts]


def off_the_page(figure) -> list[str]:
    width, height = figure.bbox.size
    return [text for text, left, bottom, right, top in boxes(figure) if left < 0 or bottom < 0 or right > width or top > height]


def overlapping(figure) -> list[tuple[str, str]]:
    found = boxes(figure)
    return [(a[0], b[0]) for i, a in enumerate(found) for b in found[i + 1 :] if a[1] < b[3] and b[1] < a[3] and a[2] < b[4] and b[2] < a[4]]


# -- timeline -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sets", ([], ["track=language"], ["track=reward"], ["first=1986"], ["first=2019"], ["last=1957"], ["first=2018", "last=2019"]))
def test_no_label_of_the_timeline_touches_another_or_leaves_the_page(sets):
    found = timeline.run(make_options(timeline.Options, sets), [])
    figure = found.figures["timeline"]
    assert overlapping(figure) == [] and off_the_page(figure) == [] and found.held
    assert len(boxes(figure)) >= 2 * len(found.tables[0].rows) + 2


def test_the_timelines_own_check_sees_what_the_test_sees():
    # Larger letters must collide and leave the page, and both must say so.
    figure = timeline.draw(MILESTONES)
    for text in (t for axes in figure.axes for t in axes.texts):
        text.set_fontsize(text.get_fontsize() * 1.6)
    touching, outside = timeline.collisions(figure)
    assert {frozenset(pair) for pair in overlapping(figure)} == {frozenset(pair) for pair in touching} and len(touching) >= 5
    assert sorted(off_the_page(figure)) == sorted(outside) and len(outside) > 5


def test_the_facts_of_the_timeline():
    years = {m.name: m.year for m in MILESTONES}
    # from the papers' own title pages
    known = {
        "Perceptron": 1957, "Dynamic programming": 1957, "Checkers program": 1959, "Perceptrons": 1969, "Actor-critic": 1983, "Back-propagation": 1986,
        "Temporal differences": 1988, "Q-learning": 1989, "REINFORCE": 1992, "Long short-term memory": 1997, "Transformer": 2017, "PPO": 2017,
        "RLHF for language models": 2019, "GPT-3": 2020, "InstructGPT and ChatGPT": 2022, "DPO": 2023, "GRPO": 2024, "DeepSeek-R1": 2025,
    }  # fmt: skip
    assert known.items() <= years.items() and MILESTONES[0].name == "Perceptron"
    assert [m.year for m in MILESTONES] == sorted(m.year for m in MILESTONES)
    for m in MILESTONES:  # an arXiv number begins with the year and month of its first version
        for word in m.source.replace(";", "").split():
            if word[:4].isdigit() and word[4:5] == ".":
                assert 2000 + int(word[:2]) == m.year and 1 <= int(word[2:4]) <= 12, m
    assert all(m.authors and m.changed and m.source for m in MILESTONES) and len(years) == len(MILESTONES)


def test_the_two_histories_meet_once():
    shared = [i for i, m in enumerate(MILESTONES) if m.track == BOTH]
    before = {m.track for m in MILESTONES[: shared[0]]}
    assert before == {REWARD, NETWORK} and MILESTONES[shared[0]].year == 2019
    meeting = shared[0] - 0.5
    assert timeline._x(REWARD, 0, meeting) < 0 < timeline._x(NETWORK, 0, meeting)
    assert timeline._x(REWARD, meeting, meeting) == timeline._x(NETWORK, meeting, meeting) == timeline._x(BOTH, meeting, meeting) == 0


def test_a_part_of_the_timeline():
    found = timeline.run(make_options(timeline.Options, ["first=1980", "last=1999", "track=reward"]), [])
    assert {row[4] for row in found.tables[0].rows} == {REWARD} and {1983, 1999} <= {row[0] for row in found.tables[0].rows}
    with pytest.raises(ConfigError, match="last=1900"):
        timeline.expectation(make_options(timeline.Options, ["last=1900"]))
    assert "meet" not in timeline.expectation(make_options(timeline.Options, ["last=1999"]))


# -- gae ----------------------------------------------------------------------------------------------------------------


def enumerated(v: np.ndarray, lam: float) -> tuple[float, float]:
    """Squared bias and variance by following every path of a walk of two states, and the sum of (lam^l delta_l) along it.

    From state 1 the walk is ... 1, 2, 1, 2 ... until it steps off, so a path is known by its length; 2^-50 is left out.
    """
    reward = {0: -1.0, 3: 1.0}
    bias2, variance = [], []
    for start in (1, 2):
        first, second = 0.0, 0.0
        means = []
        for action in (-1, 1):
            mean = square = 0.0
            at, following, weight, total, decay = start, start + action, 1.0, 0.0, 1.0
            for _ in range(50):
                total += decay * (reward.get(following, 0.0) + (0.0 if following in reward else v[following]) - v[at])
                decay *= lam
                if following in reward:
                    mean, square = mean + weight * total, square + weight * total**2
                    break
                # the next step ends it with probability 1/2, on the near side
                at, end = following, 0 if following == 1 else 3
                ended = total + decay * (reward[end] - v[at])
                mean, square = mean + weight / 2 * ended, square + weight / 2 * ended**2
                weight, following = weight / 2, 3 - at
            means.append(action * mean)
            first, second = first + action * mean / 2, second + square / 2
        bias2.append((first - 2 / 3) ** 2)
        variance.append(second - first**2)
    return float(np.mean(bias2)), float(np.mean(variance))


@pytest.mark.parametrize("lam", (0.0, 0.3, 0.9, 1.0))
@pytest.mark.parametrize("error", ((0.0, 0.0), (0.3, -0.2), (-1.0, 2.0)))
def test_exact_moments_equal_the_enumeration_of_all_paths(error, lam):
    v = gae_walk.values(2) + np.array([0.0, *error, 0.0])
    found = gae_walk.exact(v, [lam])
    assert (found.bias2[0], found.variance[0]) == pytest.approx(enumerated(v, lam), abs=1e-9)


def test_exact_moments_by_hand():
    # One state: either step ends it. score * (+-1 - v) = 1 - score v: mean 1 = the target, variance v^2, at every lambda.
    found = gae_walk.exact(np.array([0.0, 0.3, 0.0]), [0.0, 0.5, 1.0])
    assert found.bias2 == pytest.approx([0] * 3) and found.variance == pytest.approx([0.09] * 3)
    # Two states, lambda 0, critic off by (a, b): right of state 1 gives v2 + b - v1 - a, left -1 - v1 - a; score x delta has
    # mean (v2 + b + 1) / 2 = 2/3 + b/2 in state 1 and 2/3 - a/2 in state 2 (v1 = -1/3, v2 = 1/3): bias^2 = (a^2 + b^2) / 8.
    found = gae_walk.exact(gae_walk.values(2) + np.array([0, 0.4, -0.2, 0]), [0.0])
    assert found.bias2[0] == pytest.approx((0.16 + 0.04) / 8)


def test_the_walks_values_satisfy_bellman_and_its_advantages_are_equal():
    for n in (2, 9, 19):
        v = gae_walk.values(n)
        q = np.stack([np.r_[-1.0, v[1:-2]], np.r_[v[2:-1], 1.0]], 1)  # left, right: the reward at an end, or the next value
        assert v[1:-1] == pytest.approx(q.mean(1)) and q[:, 1] - v[1:-1] == pytest.approx(2 / (n + 1))


def test_walks_end_at_an_end_and_start_where_they_should():
    blocks = gae_walk.walk(5, 1000, seed=3)
    assert len(blocks) == 3 and sum(len(b) for b in blocks) == 5 * 2 * 1000
    first = blocks[0]
    assert first[:10, 0].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5] and first[:10, 1].tolist() == [0, 2, 1, 3, 2, 4, 3, 5, 4, 6]
    assert set(first[:, -1]) == {0, 6} and np.abs(np.diff(first.astype(int))).max() == 1
    length = (first[4::10] != first[4::10, -1:]).sum(1)  # from the middle: mean time to leave is 3 * 3 = 9
    assert abs(length.mean() - 9) < 4 * length.std() / math.sqrt(len(length))
    assert not np.array_equal(first, gae_walk.walk(5, 1000, seed=4)[0])


def small(*sets: str) -> gae.Options:
    return make_options(gae.Options, ["trajectories=60", "states=7", *sets])


def test_gae_holds_and_bias_and_variance_are_in_the_table():
    found = gae.run(small(), range(6))
    assert found.held, [c for c in found.checks if not c.held]
    rows = found.tables[0].rows
    assert [row[0] for row in rows] == list(gae.LAMBDAS)
    for row in rows:  # the interval over critics holds the exact mean of the same critics
        assert row[3].low - 0.01 < row[5] < row[3].high + 0.01
    assert 0.3 < found.values["best_lambda"] < 0.95


def test_with_the_exact_value_function_lambda_0_is_best():
    found = gae.run(small("critic_error=0"), range(3))
    assert found.held and found.values["best_lambda"] == 0 and "unbiased" in gae.expectation(small("critic_error=0"))


@pytest.mark.parametrize("wrong", ("lambda off by a tenth", "bootstraps past the end", "forgets the reward"))
def test_a_wrong_advantage_does_not_pass_the_lab(monkeypatch, wrong):
    real = gae_walk.gae
    broken = {
        "lambda off by a tenth": lambda r, v, n, d, c, lam: real(r, v, n, d, c, 0.9 * lam),
        "bootstraps past the end": lambda r, v, n, d, c, lam: real(r, v, n + (1 - d) * 0.5, torch.ones_like(d), c, lam),
        "forgets the reward": lambda r, v, n, d, c, lam: real(r * 0.9, v, n, d, c, lam),
    }[wrong]
    monkeypatch.setattr(gae_walk, "gae", broken)
    failed = [c.claim for c in gae.run(small(), range(3)).checks if not c.held]
    assert "sampled trajectories agree with the two linear systems" in failed


# -- clipping -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "ratio", "advantage", "objective"),
    [
        ([], 1.5, 0.4, 0.48),  # min(0.6, 1.2 * 0.4)
        ([], 0.6, -0.3, -0.24),  # min(-0.18, 0.8 * -0.3)
        ([], 0.5, 0.4, 0.2),  # min(0.2, 0.8 * 0.4): no reward for having come too far down
        ([], 2.0, -0.3, -0.6),  # min(-0.6, 1.2 * -0.3)
        (["clip_high=0.28"], 1.5, 0.4, 0.512),  # 1.28 * 0.4
        (["clip_low=0.1"], 0.6, -0.3, -0.27),  # 0.9 * -0.3; clip_high follows clip_low
        (["dual_clip=3"], 3.5, -0.3, -0.9),  # max(-1.05, 3 * -0.3)
        (["dual_clip=3"], 3.5, 0.4, 0.48),  # dual clip leaves good actions alone
    ],
)
def test_objective_by_hand(sets, ratio, advantage, objective):
    options = make_options(clipping.Options, sets)
    (value,), _ = clipping.surrogate(options, [ratio], advantage)
    assert value == pytest.approx(objective, abs=1e-12) and clipping.by_hand(options, ratio, advantage) == pytest.approx(objective, abs=1e-12)


def test_the_worked_cases_are_in_the_findings():
    found = clipping.run(clipping.Options(), [])
    assert found.held
    assert [(w["ratio"], w["advantage"], round(w["objective"], 12), w["gradient"]) for w in found.values["worked"]] == [(1.5, 0.4, 0.48, 0), (0.6, -0.3, -0.24, 0)]
    assert "0.48" in clipping.expectation(clipping.Options()) and "-0.24" in clipping.expectation(clipping.Options())
    rows = clipping.run(make_options(clipping.Options, ["dual_clip=3"]), []).tables[1].rows
    assert [(row[2], row[5]) for row in rows] == [
        ("below", "lives"), ("inside", "lives"), ("above", "cut"), ("below", "cut"), ("inside", "lives"), ("above", "lives"), ("beyond the dual clip", "cut"),
    ]  # fmt: skip


@pytest.mark.parametrize("sets", (["clip_low=0"], ["clip_high=0"], ["clip_low=0.05", "clip_high=1"], ["dual_clip=1.1"], ["dual_clip=1.5", "bad_ratio=2.5"], ["good_ratio=0.3", "bad_ratio=3.5"]))
def test_every_setting_holds_and_stays_on_the_page(sets):
    found = clipping.run(make_options(clipping.Options, sets), [])
    assert found.held, [c for c in found.checks if not c.held]
    assert off_the_page(found.figures["clipping"]) == []


@pytest.mark.parametrize("wrong", ("without the clip", "max for min"))
def test_a_wrong_surrogate_does_not_pass_the_lab(monkeypatch, wrong):
    def without(logp, old, a, *_):
        return -a * (logp - old).exp()

    def swapped(logp, old, a, low, high, dual):
        rho = (logp - old).exp()
        return torch.minimum(-a * rho, -a * rho.clamp(1 - low, 1 + low))

    monkeypatch.setattr(clipping, "clipped_surrogate", without if wrong == "without the clip" else swapped)
    assert len([c for c in clipping.run(clipping.Options(), []).checks if not c.held]) >= 3


# -- kl -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", kl.ESTIMATORS)
@pytest.mark.parametrize("m", (0.1, 0.5, 1.0))
def test_closed_forms_equal_an_integral(name, m):
    x, weight = np.polynomial.hermite_e.hermegauss(120)  # integrates f(x) exp(-x^2 / 2)
    weight = weight / weight.sum()
    log_rho = m * x - m * m / 2  # log ref - log pi
    value = {"k1": -log_rho, "k2": log_rho**2 / 2, "k3": np.exp(log_rho) - 1 - log_rho, "reversed k3": np.exp(-log_rho) - 1 + log_rho}[name] / (m * m / 2)
    mean = weight @ value
    assert kl.closed_form(name, m) == pytest.approx((mean - 1, math.sqrt(weight @ (value - mean) ** 2)), rel=1e-7, abs=1e-9)


def test_the_published_table():
    # Schulman 2020: bias / KL and std / KL at KL 0.005 and 0.5 (his 0.002 for k2 is 0.0025, sampled)
    assert [round(kl.closed_form(k, 0.1).spread, 2) for k in ("k1", "k2", "k3")] == [20.0, 1.42, 1.42]
    assert [round(kl.closed_form(k, 1.0).spread, 2) for k in ("k1", "k2", "k3")] == [2.0, 1.73, 1.7]
    assert [round(kl.closed_form(k, 1.0).bias, 2) for k in ("k1", "k2", "k3")] == [0, 0.25, 0]


def test_gradients_by_calculus():
    policy, reference = kl.logits(6, seed=1)
    p, q = policy.softmax(-1).numpy(), reference.softmax(-1).numpy()
    ahead = p * (np.log(p / q) - p @ np.log(p / q))  # d KL(pi || ref) / d z_i = p_i (log(p_i / q_i) - KL)
    back = p - q  # d KL(ref || pi) / d z_i
    found = kl.softmax_gradients(policy, reference)
    for name, expected in (("KL(pi || ref)", ahead), ("KL(ref || pi)", back), ("k1 in the reward", ahead), ("k2 as a loss", ahead), ("k3 as a loss", back), ("k1 as a loss", 0 * p)):
        assert found[name] == pytest.approx(expected, abs=1e-12), name
    assert np.abs(found["k3 as a loss"] - ahead).max() > 0.05  # the two are far apart here


def test_kl_holds():
    options = make_options(kl.Options, ["samples=40000", "distance=0.5"])
    found = kl.run(options, range(3))
    assert found.held, [c for c in found.checks if not c.held]
    assert {row[0] for row in found.tables[0].rows} == {"N(0.1, 1)", "N(0.5, 1)", "N(1, 1)"}
    assert off_the_page(found.figures["kl"]) == []


@pytest.mark.parametrize("wrong", ("k3 upside down", "k2 without its half"))
def test_a_wrong_estimator_does_not_pass_the_lab(monkeypatch, wrong):
    name, real = wrong.split()[0], kl.k3
    broken = (lambda a, b: real(b, a)) if name == "k3" else (lambda a, b: (a - b) ** 2)
    monkeypatch.setattr(kl, name, broken)
    monkeypatch.setattr(kl, "ESTIMATORS", {**kl.ESTIMATORS, name: broken})
    failed = [c.claim for c in kl.run(make_options(kl.Options, ["samples=40000"]), range(3)).checks if not c.held]
    assert "every bias is the closed form's" in failed and any(claim.startswith(name) and "gradient" in claim for claim in failed)


def test_figures_stay_on_their_page():
    assert off_the_page(gae.run(small(), range(2)).figures["gae"]) == []
