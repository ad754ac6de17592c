"""Whole runs of the group methods on tiny models: which groups count, which prompts come, what is loaded, what is logged, and what pass@k says afterwards."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import grpo_tiny
import ppo_tiny
from truing.config import PRESETS, Evaluate
from truing.config.grpo import Curriculum
from truing.data.batches import walk
from truing.errors import RewardError
from truing.learn.update import Learner
from truing.maths import kl
from truing.methods import grpo as page
from truing.methods import grpo_collect
from truing.methods.actor import Actor
from truing.methods.curriculum import Walk
from truing.methods.evaluate import evaluate
from truing.observe.events import read_events
from truing.rewards.shaping import soft_overlong


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grpo_tiny.world(tmp_path_factory.mktemp("grpo"))


class Opened:
    """The models and the learner of the runs of a test, and every group that was drawn."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.actors: list[Actor] = []
        self.learners: list[Learner] = []
        self.before: list[page.Before] = []
        for name, kept in (("open_actor", self.actors), ("Learner", self.learners), ("advantage", self.before)):
            patch.setattr(page, name, self._kept(getattr(page, name), kept))

    @staticmethod
    def _kept(made: Any, kept: list[Any]) -> Any:
        def make(*given: Any, **named: Any) -> Any:
            kept.append(made(*given, **named))
            return kept[-1]

        return make


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    return Opened(monkeypatch)


def varied(rows: list[dict[str, Any]], group: int = 4) -> list[bool]:
    scores = [row["score"] for row in rows]
    return [len(set(scores[i : i + group])) > 1 for i in range(0, len(scores), group)]


# -- every preset runs ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_runs_and_its_first_ratio_is_exactly_one(preset: str, world: Path, tmp_path: Path, opened: Opened) -> None:
    found = grpo_tiny.run(world, tmp_path / "run", preset=preset)
    assert [m["step"] for m in found] == [1, 2]
    assert all(m["policy/first_ratio_error"] == 0.0 for m in found) and found[0]["sampler/mismatch"] < 1e-5
    assert all(isinstance(v, int | float) and math.isfinite(v) for m in found for k, v in m.items() if k != "kind")
    (actor,), (learner,) = opened.actors, opened.learners
    held = "kl" in PRESETS[preset]
    assert (actor.reference is not None) == held and len(actor.backbones()) == 1  # the reference is the backbone without its adapter
    assert ("kl/sequence" in found[0]) == held and (not held or found[0]["kl/sequence"] == 0.0 < found[1]["kl/k3_sequence"])
    assert learner.updates == 2 * 2 * 2 and learner.factor(learner.updates) == 0.0
    assert all(g["eps"] == 1e-5 for g in learner.adam.param_groups)


@pytest.mark.parametrize("coef", [0.0, 0.04])
def test_without_a_penalty_no_second_copy_of_the_weights_is_there(coef: float, world: Path, tmp_path: Path, opened: Opened) -> None:
    """Counted as what is alive: all models whose weights have the embedding's shape."""
    import gc

    from truing.models.backbone import Backbone

    gc.collect()
    before = {id(x) for x in gc.get_objects() if type(x) is Backbone}
    grpo_tiny.run(world, tmp_path / "run", lora=None, lr=1e-3, kl={"coef": coef})
    alive = [x for x in gc.get_objects() if type(x) is Backbone and id(x) not in before]
    (actor,) = opened.actors
    assert len(alive) == len(actor.backbones()) == (2 if coef else 1)
    assert (actor.reference is None) == (coef == 0) == (opened.before[-1].logp_ref is None)


def test_a_seed_is_a_run(world: Path, tmp_path: Path) -> None:
    runs = [page.grpo(grpo_tiny.options(world), tmp_path / str(i), seed=seed)["weights_sha256"] for i, seed in enumerate((3, 3, 4))]
    assert runs[0] == runs[1] != runs[2]
    assert grpo_tiny.metrics(tmp_path / "0") == grpo_tiny.metrics(tmp_path / "1")


def test_a_group_of_64_works_and_learns(world: Path, tmp_path: Path) -> None:
    """Letters of the first half of the alphabet: after six updates on groups of 64 there are more of them."""
    changes = {"reward": "test_ppo_runs:letters", "batch_size": 128, "group": 64, "steps": 6, "lr": 2e-2, "warmup": 0.0, "epochs": 1, "lora": {"rank": 8, "alpha": 32.0, "layers": None}, "preset": "dr_grpo"}
    found = grpo_tiny.run(world, tmp_path / "run", **changes)
    assert [m["groups/count"] for m in found] == [2.0] * 6 and found[-1]["reward/proxy"] > found[0]["reward/proxy"] + 3 * found[0]["reward/score_std"] / 128**0.5
    rows = grpo_tiny.samples(tmp_path / "run", 1)
    assert len(rows) == 128 and len({r["prompt"] for r in rows[:64]}) == len({r["prompt"] for r in rows[64:]}) == 1


# -- groups without a difference -----------------------------------------------------------------------------------------
def test_groups_without_a_difference_are_kept_dropped_or_drawn_again(world: Path, tmp_path: Path, opened: Opened) -> None:
    """A third of the prompts is solved whatever is said, a third hopeless. Kept and dropped see the same completions; dropped counts the rest only."""
    changes = {"reward": "grpo_tiny:by_thirds", "batch_size": 24, "steps": 1, "kl": {"coef": 0.0}}
    keep, drop, again = (grpo_tiny.run(world, tmp_path / name, zero_variance=name, **changes)[0] for name in ("keep", "drop", "resample"))
    rows = {name: grpo_tiny.samples(tmp_path / name, 1) for name in ("keep", "drop", "resample")}
    assert rows["keep"] == rows["drop"] == rows["resample"][:24]  # the first round is the same
    for found, name in ((keep, "keep"), (drop, "drop"), (again, "resample")):
        differ, thirds = varied(rows[name]), [grpo_tiny.number(r["prompt"]) % 3 for r in rows[name][::4]]
        assert differ == [t == 2 for t in thirds]  # the reward function is what it says
        assert found["groups/count"] == len(differ) and found["groups/varied_share"] == sum(differ) / len(differ)
        assert found["groups/solved_share"] == thirds.count(0) / len(thirds) and found["groups/hopeless_share"] == thirds.count(1) / len(thirds)
        assert found["groups/used_share"] == (1.0 if name == "keep" else sum(differ) / len(differ))
        assert found["reward/proxy"] == pytest.approx(sum(r["score"] for r in rows[name]) / len(rows[name]))  # the mean of all that was drawn
    assert keep["grad/norm"] < 0.75 * drop["grad/norm"]  # two in six groups differ: kept, the others count in the mean with gradient 0
    used = opened.before[-1].advantages.abs().sum(-1) > 0
    assert int(used.sum()) == 4 * sum(varied(rows["resample"]))


def test_drawing_again_takes_other_prompts_with_other_random_numbers_and_ends(world: Path, tmp_path: Path) -> None:
    """Six groups are wanted, each round asks for as many as are missing, and the walk goes on where it stands."""
    changes: dict[str, Any] = {"reward": "grpo_tiny:by_thirds", "batch_size": 24, "steps": 2, "save_every": 1, "zero_variance": "resample", "kl": {"coef": 0.0}}
    (tmp_path / "calls").mkdir()
    found = grpo_tiny.run(world, tmp_path / "run", resample_rounds=2, **changes)
    at = 0
    for step, m in enumerate(found, 1):
        rows = grpo_tiny.samples(tmp_path / "run", step)
        missing, rounds, taken = 6, 0, 0
        differ = varied(rows)
        while missing and rounds < 3:  # the first, and two more
            missing, taken, rounds = missing - sum(differ[taken : taken + missing]), taken + missing, rounds + 1
        assert m["groups/count"] == taken == len(differ)
        prompts = [grpo_tiny.number(r["prompt"]) for r in rows[::4]]
        assert prompts == [walk(grpo_tiny.WORLDS, 1, at + 1 + i, 0, "grpo")[0] for i in range(taken)]
        at += taken
    # the same prompt, drawn in two rounds, has other completions
    rows = grpo_tiny.samples(tmp_path / "run", 1) + grpo_tiny.samples(tmp_path / "run", 2)
    groups = {}
    for i in range(0, len(rows), 4):
        groups.setdefault(rows[i]["prompt"], []).append([r["logp"] for r in rows[i : i + 4]])
    assert all(a != b for found_ in groups.values() for n, a in enumerate(found_) for b in found_[:n]) and max(map(len, groups.values())) > 1


def test_when_nothing_differs_nothing_is_learned_and_the_schedule_goes_on(world: Path, tmp_path: Path, opened: Opened) -> None:
    """Zero gradients would still move Adam by its moments; rounds are bounded, and a finding says what is wrong."""
    for name in ("keep", "drop", "resample"):
        found = grpo_tiny.run(world, tmp_path / name, reward="test_ppo_bad_input:constant", zero_variance=name, kl={"coef": 0.0}, scores={"timeout": None})
        assert [m["policy/updates"] for m in found] == [0.0, 0.0] and [m["groups/count"] for m in found] == [2.0 if name != "resample" else 8.0] * 2
        assert opened.learners[-1].updates == 8 and not opened.learners[-1].adam.state
        (finding,) = (e for e in read_events(tmp_path / name) if e["kind"] == "finding")
        assert finding["name"] == "reward/equal" and "0.7" in finding["message"]
    start = {k: p.clone() for k, p in opened.actors[0].parameters().items()}
    fresh = page.open_actor(grpo_tiny.options(world), 0, None, reference=False)
    assert all(torch.equal(p, start[k]) for k, p in fresh.parameters().items())


# -- completions ---------------------------------------------------------------------------------------------------------
def enders(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sixth of all tokens ends a completion, so that some end early and some are cut off."""
    from truing.data.template import Renderer

    real = Renderer.__init__

    def made(self: Renderer, tokenizer: Any) -> None:
        real(self, tokenizer)
        self.stop_ids = tuple(ppo_tiny.STOPS)

    monkeypatch.setattr(Renderer, "__init__", made)


def test_cut_off_completions_are_masked_by_setting(world: Path, tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rollout: kept it is all used, masked only what ended by itself, with the advantages it had."""
    enders(monkeypatch)
    changes = {"batch_size": 24, "steps": 1, "preset": "dr_grpo", "reward": "grpo_tiny:parity"}
    keep, mask = (grpo_tiny.run(world, tmp_path / how, truncated=how, **changes)[0] for how in ("keep", "mask"))
    assert keep["reward/proxy"] == mask["reward/proxy"] and keep["tokens/eos_share"] == mask["tokens/eos_share"]
    assert keep["groups/used_share"] == 1.0 and mask["groups/used_share"] == pytest.approx(keep["tokens/eos_share"]) and 0 < keep["tokens/eos_share"] < 1
    assert torch.equal(opened.before[1].advantages, opened.before[-1].advantages)  # the reward of what is masked still counts in its group


def test_long_completions_cost_what_the_soft_penalty_says(world: Path, tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 6 tokens the last 5 are the margin: each after the first costs 1/5. Equal scores differ by it, and are no group without a difference to the optimiser."""
    enders(monkeypatch)
    grpo_tiny.run(world, tmp_path / "run", preset="dr_grpo", overlong=0.8, reward="test_ppo_bad_input:constant", batch_size=24, steps=1, epochs=1, minibatches=1, scores={"timeout": None})
    rows = grpo_tiny.samples(tmp_path / "run", 1)
    costs = [-(r["tokens"] - 1) / 5 for r in rows]
    assert len(set(costs)) > 2
    for first in range(0, 24, 4):
        mean = sum(costs[first : first + 4]) / 4
        assert opened.before[-1].advantages[first : first + 4, 0].tolist() == pytest.approx([c - mean for c in costs[first : first + 4]], abs=1e-6)


def test_the_floor_of_the_spread_binds_in_a_run(world: Path, tmp_path: Path, opened: Opened) -> None:
    """Scores of sums() are tenths with spreads of about 0.3: a floor of 10 divides by 10 instead."""
    grpo_tiny.run(world, tmp_path / "run", std_floor=10.0, steps=1)
    scores = torch.tensor([r["score"] for r in grpo_tiny.samples(tmp_path / "run", 1)]).view(2, 4)
    wanted = (scores - scores.mean(-1, keepdim=True)) / 10
    assert opened.before[-1].advantages[:, 0].tolist() == pytest.approx(wanted.flatten().tolist(), abs=1e-6)


def test_remax_compares_with_the_reward_of_the_greedy_completion(world: Path, tmp_path: Path, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """A completion of each prompt at temperature 0, scored and never trained on; the same penalty of length on both sides."""
    greedy: list[dict[int, float]] = []
    real = grpo_collect.Collector._greedy


    def noted(self: grpo_collect.Collector, *given: Any) -> Any:
        found = real(self, *given)
        greedy.append(found[0])
        return found

    monkeypatch.setattr(grpo_collect.Collector, "_greedy", noted)
    (m,) = grpo_tiny.run(world, tmp_path / "run", preset="remax", steps=1, overlong=0.5)
    rows = grpo_tiny.samples(tmp_path / "run", 1)
    assert len(rows) == 8 and len(greedy) == 1 and len(greedy[0]) == 2 and m["groups/count"] == 2
    first = list(greedy[0].values())
    wanted = [r["score"] + soft_overlong(r["tokens"], 6, 3) - first[i // 4] for i, r in enumerate(rows)]  # the policy is its own reference at first
    assert opened.before[-1].advantages[:, 0].tolist() == pytest.approx(wanted, abs=1e-6)
    # greedy means: the most likely token at every place, whatever the seed, and scored like any other
    config = grpo_tiny.options(world, preset="remax", overlong=0.5)
    actor = page.open_actor(config, 0, None, reference=False)
    answering = grpo_collect.Answering(config, actor.tokenizer, None, tmp_path)
    which = [[r.id for r in answering.records].index(f"t{grpo_tiny.number(row['prompt'])}") for row in rows[::4]]
    rollout, _ = answering.ask(actor.policy, which, temperature=0.0, seed=99, step=7, samples=range(2))
    scores = ppo_tiny.sums([], actor.decode([s[len(p) :] for s, p in zip(rollout.sequences(), rollout.prompts, strict=True)]))
    assert first == pytest.approx([s + soft_overlong(int(n), 6, 3) for s, n in zip(scores, rollout.lengths_B, strict=True)])


def test_a_bonus_keeps_the_entropy_up(world: Path, tmp_path: Path) -> None:
    kept, lost = (grpo_tiny.run(world, tmp_path / str(c), steps=3, entropy=c, lr=1e-2, warmup=0.0)[-1]["policy/entropy"] for c in (1.0, 0.0))
    assert kept > lost + 0.2


def test_an_early_stop_leaves_out_the_rest_and_the_schedule_goes_on(world: Path, tmp_path: Path, opened: Opened) -> None:
    changes: dict[str, Any] = {"steps": 2, "epochs": 4, "lr": 3e-2, "warmup": 0.0}
    free = grpo_tiny.run(world, tmp_path / "free", **changes)
    held = grpo_tiny.run(world, tmp_path / "held", **changes, kl={"coef": 0.0, "stop": 1e-3})
    assert all(m["policy/updates"] == 8 for m in free) and 2 <= held[0]["policy/updates"] < 8
    assert opened.learners[1].updates == 2 * 4 * 2 and opened.learners[1].factor(opened.learners[1].updates) == 0.0
    assert held[1]["lr"] == pytest.approx(3e-2 * (16 - (8 + held[1]["policy/updates"] - 1)) / 16)


@pytest.mark.parametrize("place", ["reward", "loss_k2", "token_k3"])
def test_the_coefficient_follows_the_divergence_of_sequences(place: str, world: Path, tmp_path: Path) -> None:
    found = grpo_tiny.run(world, tmp_path / "run", steps=4, lr=2e-2, warmup=0.0, kl={"coef": 0.1, "target": 0.05, "horizon": 40, "place": place})
    control = kl.AdaptiveCoefficient(0.1, 0.05, 40)
    for m in found:
        assert m["kl/coef"] == pytest.approx(control.coef, rel=1e-12)
        control = control.after(m["kl/sequence"], 8)
    assert json.loads((tmp_path / "run" / "done.json").read_text())["kl_coef"] == pytest.approx(control.coef, rel=1e-12)


# -- curriculum ----------------------------------------------------------------------------------------------------------
def visited(options: Curriculum, prompts: int, count: int, scores: dict[int, float], steps: int) -> tuple[Walk, list[list[int]], list[dict[str, int]]]:
    w = Walk(prompts, 0, options)
    chosen, skipped = [], []
    for _ in range(steps):
        w.restore(json.loads(json.dumps(w.state())))
        chosen.append(w.next(count))
        w.learn({p: [scores[p]] * 4 for p in chosen[-1]})
        skipped.append(dict(w.skipped))
    return w, chosen, skipped


def test_solved_and_hopeless_prompts_are_left_out_and_tried_again() -> None:
    """Four prompts of rates 1, 0, 1/2, 1/2, believed after four completions; left out twice, then tried again.

    Epoch 1 visits all four. In epochs 2 and 3 the first two are passed by, in epoch 4 they have rested and come again.
    """
    _, chosen, skipped = visited(Curriculum(solved=1.0, hopeless=0.0, after=4, rest=2), 4, 2, {0: 1.0, 1: 0.0, 2: 0.5, 3: 0.5}, 6)
    by_epoch = [sorted(chosen[0] + chosen[1]), sorted(chosen[2]), sorted(chosen[3]), sorted(chosen[4] + chosen[5])]
    assert by_epoch == [[0, 1, 2, 3], [2, 3], [2, 3], [0, 1, 2, 3]]
    total = {why: sum(s[why] for s in skipped) for why in ("solved", "hopeless")}
    assert total == {"solved": 2, "hopeless": 2}


def test_without_a_curriculum_the_walk_is_that_of_the_data() -> None:
    w, chosen, skipped = visited(Curriculum(), 5, 3, dict.fromkeys(range(5), 1.0), 5)
    assert [p for step in chosen for p in step] == [p for step in range(1, 6) for p in walk(5, 3, step, 0, "grpo")] and w.at == 15
    assert all(s == {"solved": 0, "hopeless": 0} for s in skipped)


def test_rates_are_running_means_that_forget() -> None:
    """0 0 0 0, then 1 1 1 1: the rate is 0, then 0 + 1/2 (1 - 0); penalties and bonuses do not leave 0 to 1."""
    w = Walk(1, 0, Curriculum(solved=1.0))
    for value in (-3.0, 1.0, 5.0):
        w.learn({0: [value] * 4})
    assert w.known[0][:2] == [12, 0.75] and w.metrics()["curriculum/solve_rate"] == 0.75


def test_when_all_is_solved_the_rest_is_taken_as_it_comes() -> None:
    w, chosen, skipped = visited(Curriculum(solved=1.0, after=1, rest=100), 3, 3, dict.fromkeys(range(3), 1.0), 3)
    assert all(sorted(c) == [0, 1, 2] for c in chosen) and skipped[1] == {"solved": 3, "hopeless": 0}


def test_a_run_leaves_prompts_out_counts_them_and_carries_on_where_it_stood(world: Path, tmp_path: Path) -> None:
    """A third solved, a third hopeless, believed after one visit: from the second epoch on only the others come, also in the rounds of a step."""
    changes: dict[str, Any] = {"reward": "grpo_tiny:by_thirds", "batch_size": 16, "steps": 5, "save_every": 1, "epochs": 1, "minibatches": 1, "curriculum": {"solved": 0.99, "hopeless": 0.01, "after": 4, "rest": 50}}
    found = grpo_tiny.run(world, tmp_path / "run", **changes)
    prompts = [[grpo_tiny.number(r["prompt"]) for r in grpo_tiny.samples(tmp_path / "run", step)[::4]] for step in range(1, 6)]
    assert sorted(sum(prompts[:3], [])) == list(range(12)) and all(p % 3 == 2 for p in sum(prompts[3:], []))
    assert [(m["curriculum/skipped_solved"], m["curriculum/skipped_hopeless"]) for m in found[:3]] == [(0.0, 0.0)] * 3
    assert sum(m["curriculum/skipped_solved"] + m["curriculum/skipped_hopeless"] for m in found[3:]) >= 8 and 0 < found[-1]["curriculum/solve_rate"] < 1
    assert found[3]["groups/varied_share"] == 1.0
    again = grpo_tiny.run(world, tmp_path / "again", zero_variance="resample", **changes)
    last = json.loads((sorted((tmp_path / "again" / "checkpoints").iterdir())[-1] / "state.json").read_text())
    # every prompt that the walk passed was drawn in some round of a step, or is counted as left out
    assert sum(m["curriculum/skipped_solved"] + m["curriculum/skipped_hopeless"] + m["groups/count"] for m in again) == _state(last)["walk"]["at"] > 20


def _state(saved: dict[str, Any]) -> dict[str, Any]:
    return next(v for v in (saved.get("method"), saved.get("state", {}).get("method")) if v is not None)


# -- rewards that fail ---------------------------------------------------------------------------------------------------
def test_a_reward_that_fails_leaves_ragged_groups_and_never_a_zero(world: Path, tmp_path: Path, opened: Opened) -> None:
    """A seventh of the completions has no score: it is left out of its group, counted, and written down with its reason."""
    (m,) = grpo_tiny.run(world, tmp_path / "run", preset="dr_grpo", reward="grpo_tiny:fickle", scores={"timeout": None, "bad_share": 0.5}, batch_size=48, steps=1, epochs=1, minibatches=1)
    rows = grpo_tiny.samples(tmp_path / "run", 1)
    good, bad = [r for r in rows if r["status"] == "ok"], [r for r in rows if r["status"] != "ok"]
    assert len(rows) == 48 and bad and all(r["score"] is None and r["status"] == "non_finite" and "fickle gave nan" in r["reason"] for r in bad)
    assert m["reward/failed_share"] == len(bad) / 48 and m["reward/proxy"] == pytest.approx(sum(r["score"] for r in good) / len(good))
    advantages, at, ragged = opened.before[-1].advantages, 0, 0
    while at < len(good):
        group = [r for r in good if r["prompt"] == good[at]["prompt"]]
        scores, ragged = [r["score"] for r in group], ragged + (1 < len(group) < 4)
        wanted = [s - sum(scores) / len(scores) for s in scores]
        assert advantages[at : at + len(group), 0].tolist() == pytest.approx(wanted, abs=1e-6)
        at += len(group)
    assert ragged
    (finding,) = (e for e in read_events(tmp_path / "run") if e["kind"] == "finding")
    assert finding["name"] == "reward/failed" and f"{len(bad)} of 48" in finding["message"]


def test_a_greedy_completion_without_a_score_leaves_its_prompt_without_a_baseline(world: Path, tmp_path: Path, opened: Opened) -> None:
    """ReMax on four prompts, one of whose greedy completions has no score: its group counts and teaches nothing, and the failure is counted and written down."""
    changes = {"preset": "remax", "reward": "test_grpo_runs:no_lone_fifth", "scores": {"timeout": None, "bad_share": 0.5}, "batch_size": 16, "steps": 1, "epochs": 1, "minibatches": 1}
    (m,) = grpo_tiny.run(world, tmp_path / "run", **changes)
    rows = grpo_tiny.samples(tmp_path / "run", 1)
    bad = [r for r in rows if r["status"] != "ok"]
    assert m["reward/failed_share"] == 1 / 17 and [grpo_tiny.number(r["prompt"]) for r in bad] == [grpo_tiny.number(rows[4]["prompt"])] and m["groups/count"] == 4
    without = (opened.before[-1].advantages.abs().sum(-1) == 0).view(4, 4).all(-1)
    assert without.tolist() == [False, True, False, False]


def no_lone_fifth(prompts: list[str], completions: list[str]) -> list[float]:
    """Of a batch in which every prompt is there once, the second completion has no score; else all have, and groups differ."""
    alone = len(set(prompts)) == len(prompts)
    return [math.nan if alone and i == 1 else i % 4 / 3 + 0.01 for i in range(len(prompts))]


def test_above_the_allowed_share_the_run_stops_with_the_reason(world: Path, tmp_path: Path) -> None:
    with pytest.raises(RewardError, match=r"% of the rewards failed \(allowed 1%\), the first with non_finite: fickle gave nan"):
        grpo_tiny.run(world, tmp_path / "run", reward="grpo_tiny:fickle", scores={"timeout": None, "bad_share": 0.01}, batch_size=48)
    assert not (tmp_path / "run" / "model").exists() and not grpo_tiny.metrics(tmp_path / "run")


# -- environments --------------------------------------------------------------------------------------------------------
def test_episodes_train_on_what_was_sampled_and_on_nothing_that_was_heard(world: Path, tmp_path: Path, opened: Opened) -> None:
    """Two guesses of a number: what the environment says is in the sequence and in no count, and the first ratio is exactly 1."""
    found = grpo_tiny.run(world, tmp_path / "run", preset="dr_grpo", environment="guess(guesses=2, explain=false)", reward='environment() + 0.1 * function("ppo_tiny:sums")', max_turns=2)
    assert all(m["policy/first_ratio_error"] == 0.0 and m["part/environment"] <= 1 and m["part/guesses"] <= 2 for m in found)
    rows = grpo_tiny.samples(tmp_path / "run", 1)
    assert found[0]["tokens/mean"] == pytest.approx(sum(r["tokens"] for r in rows) / len(rows)) and max(r["tokens"] for r in rows) <= 12


# -- attempts ------------------------------------------------------------------------------------------------------------
class Letter:
    """A verifier for this test: right when the completion's letter sum leaves the row's remainder; its answer is that remainder."""

    name, columns = "letter", ("answer",)

    def __call__(self, texts: Any, rows: Any) -> list[Any]:
        from truing.types import Score, Status

        found = [float(self.answer(t, r) == str(int(r["answer"]) % 3)) for t, r in zip(texts, rows, strict=True)]
        return [Score(v, {self.name: v}, Status.OK if v else Status.WRONG) for v in found]

    def gold(self, row: Any) -> None:
        return None

    def wrong(self, row: Any) -> list[str]:
        return []

    def answer(self, text: str, row: Any) -> str:
        return str(sum(map(ord, text)) % 3)


def test_pass_and_majority_at_k_equal_numbers_by_hand(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pass@k = 1 - C(n - c, k) / C(n, k) of every prompt, then the mean; majority@1 is pass@1, majority@n what the n answers of a prompt vote for."""
    import sys

    from truing.rewards.verifiers import verifier

    module = type(sys)("truing.rewards.verifiers.letter_of_a_test")
    module.Letter = Letter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(verifier.VERIFIERS, "letter", "letter_of_a_test:Letter")
    page.grpo(grpo_tiny.options(world, reward='verified("letter")', lr=3e-2), tmp_path / "run", seed=0)
    config = Evaluate(before=str(world / "base"), after=str(tmp_path / "run" / "model"), prompts=str(world / "tasks.jsonl"), scores={"right": 'verified("letter")'}, samples=5, max_new_tokens=6)
    evaluate(config, tmp_path / "verdict", seed=0)
    found = json.loads((tmp_path / "verdict" / "evaluation.json").read_text())
    for which in ("before", "after"):
        texts = [[s["text"] for s in row[which]] for row in found["rows"]]
        gold = [str(int(json.loads(line)["answer"]) % 3) for line in (world / "tasks.jsonl").read_text().splitlines()]
        votes = [[str(sum(map(ord, t)) % 3) for t in said] for said in texts]
        right = [v.count(g) for v, g in zip(votes, gold, strict=True)]
        assert len(right) == grpo_tiny.WORLDS and 0 < sum(right) < 60 and list(found["pass_at"]["right"][which]) == ["1", "2", "4", "5"]
        for k in (1, 2, 4, 5):
            by_hand = sum(1 - math.comb(5 - c, k) / math.comb(5, k) for c in right) / len(right)
            assert found["pass_at"]["right"][which][str(k)]["mean"] == pytest.approx(by_hand, abs=1e-9)
        whole = sum(_share_of_the_vote(v, g) for v, g in zip(votes, gold, strict=True)) / len(gold)
        assert found["majority_at"]["right"][which]["5"]["mean"] == pytest.approx(whole, abs=1e-9)
        assert found["majority_at"]["right"][which]["1"]["mean"] == pytest.approx(found["pass_at"]["right"][which]["1"]["mean"], abs=0.05)
        interval = found["pass_at"]["right"][which]["1"]
        assert interval["low"] <= interval["mean"] <= interval["high"]
    gain, before, after = (found["pass_at"]["right"][x]["4"]["mean"] for x in ("gain", "before", "after"))
    assert gain == pytest.approx(after - before, abs=1e-9)


def _share_of_the_vote(votes: list[str], gold: str) -> float:
    """1 when gold has most votes, its share of the tie when others have as many."""
    counts = {v: votes.count(v) for v in votes}
    best = [v for v, n in counts.items() if n == max(counts.values())]
    return (gold in best) / len(best)


