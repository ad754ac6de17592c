"""The vocabulary lab: two real runs, and that the same functions computed both."""

from __future__ import annotations

import doctest
import itertools
import math

import numpy as np
import pytest
import torch

from test_labs_figures import off_the_page, overlapping
from truing.config import make_options
from truing.errors import ConfigError
from truing.labs import vocabulary, vocabulary_draw, vocabulary_grid, vocabulary_lost, vocabulary_table, vocabulary_tokens
from truing.labs.lab import Findings, Table
from truing.maths.advantages import gae
from truing.methods import ppo, ppo_control, ppo_update
from truing.methods.ppo_control import PPOControl
from truing.methods.roles_of_ppo import open_roles


@pytest.mark.parametrize("module", (vocabulary_tokens, vocabulary_table, vocabulary_draw, vocabulary_lost))
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0


@pytest.fixture(scope="module")
def small() -> Findings:
    return vocabulary.run(vocabulary.Options(size=2, steps=12), [0, 1])


@pytest.fixture(scope="module")
def recorded():
    """A model after one rollout, and a rollout of it; the episodes have several lengths, and some are cut off."""
    with vocabulary_tokens.words(3, 1, 5) as made:
        vocabulary_tokens.train(made, 5, tried=False)
        seen = vocabulary_tokens.record(made, 5)
    return seen, [vocabulary_tokens.episode(seen, row) for row in range(len(seen.batch))]


@pytest.fixture(scope="module")
def walked():
    """Walks to the goal of a 2 x 2 grid by an untrained network, and the network two rollouts later, whose ratios are not 1."""
    fresh, later = (vocabulary_grid.train(2, rollouts, 0, tried=False)[1] for rollouts in (1, 3))
    walks = [w for w in vocabulary_grid.walks(2, fresh, 0, 12) if w.discount[0, -1] == 0]
    assert len({w.rewards.shape[1] for w in walks}) > 2
    return walks, later


SETTINGS = PPOControl(clip=0.05, entropy=0.0)


# -- one estimate, one loss ---------------------------------------------------------------------------------------------


def test_both_pages_call_the_very_same_functions():
    for name in ("estimate", "minibatches", "summary", "Learner"):
        assert getattr(ppo, name) is getattr(ppo_control, name)
    assert ppo.policy_loss is ppo_update.policy_loss and ppo.value_loss is ppo_update.value_loss and ppo_control.objective is ppo_update.objective


def by_hand(walks, later, clip: float) -> float:
    """PPO's loss in plain arithmetic: GAE walk by walk, whitening over all moves, the clipped surrogate and half the squared error."""
    advantages, targets, logp, moves = [], [], [], []
    for walk in walks:
        r, v, n = walk.rewards[0].double().tolist(), walk.values[0].double().tolist(), walk.rewards.shape[1]
        a = [0.0] * (n + 1)
        for t in reversed(range(n)):
            after = 0.99 * v[t + 1] if t + 1 < n else 0.0
            a[t] = r[t] + after - v[t] + (0.99 * 0.95 * a[t + 1] if t + 1 < n else 0.0)
        advantages += a[:n]
        targets += [a[t] + v[t] for t in range(n)]
        logp += walk.logp[0].double().tolist()
        moves += list(zip(walk.observations[0].tolist(), walk.actions[0].tolist(), strict=True))
    mean = sum(advantages) / len(advantages)
    std = math.sqrt(sum((a - mean) ** 2 for a in advantages) / (len(advantages) - 1))
    total, clipped = 0.0, 0
    for a, target, old, (state, action) in zip(advantages, targets, logp, moves, strict=True):
        outputs, value = later(torch.tensor(state))
        ratio = math.exp(float(outputs.double().log_softmax(-1)[action].detach()) - old)
        white = (a - mean) / std
        clipped += abs(ratio - 1) > clip
        total += -min(ratio * white, min(max(ratio, 1 - clip), 1 + clip) * white) + 0.5 * 0.5 * (float(value.detach()) - target) ** 2
    assert clipped > 0  # else the clip was not tried
    return total / len(moves)


def test_one_rollout_has_one_loss_as_moves_as_tokens_and_by_hand(walked):
    walks, later = walked
    moves, tokens = (float(loss(walks, later, SETTINGS).detach()) for loss in (vocabulary_grid.loss_as_moves, vocabulary_grid.loss_as_tokens))
    assert moves == pytest.approx(by_hand(walks, later, 0.05), abs=1e-5)
    assert tokens == pytest.approx(moves, abs=1e-6)


def test_the_gradients_are_one_too(walked):
    walks, later = walked
    found = []
    for loss in (vocabulary_grid.loss_as_moves, vocabulary_grid.loss_as_tokens):
        found.append(torch.autograd.grad(loss(walks, later, SETTINGS), list(later.parameters())))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert max(float(g.abs().max()) for g in found[0]) > 1e-3


def test_a_padded_layout_that_forgets_where_walks_end_has_another_loss(walked):
    walks, later = walked
    right = float(vocabulary_grid.loss_as_moves(walks, later, SETTINGS).detach())
    blurred = [w.__class__(**{**w.__dict__, "carry": torch.ones_like(w.carry), "discount": torch.full_like(w.discount, 0.99)}) for w in walks]
    assert abs(float(vocabulary_grid.loss_as_moves(blurred, later, SETTINGS).detach()) - right) > 1e-3
    assert abs(float(vocabulary_grid.loss_as_tokens(walks, later, SETTINGS, discount=1.0).detach()) - right) > 1e-4


def test_completions_laid_out_as_moves_have_the_stages_own_advantages(recorded):
    seen, episodes = recorded
    assert {e.terminated for e in episodes} == {True, False}
    end_to_end = lambda name: torch.tensor([[x for e in episodes for x in getattr(e, name)]])  # noqa: E731
    parts = [end_to_end(name) for name in ("rewards", "values", "next_values", "discount", "carry")]
    made = ppo_update.estimate(*parts, seen.config.lam, torch.ones_like(parts[0], dtype=torch.bool))
    for name, found in (("whitened", made.advantages), ("targets", made.targets)):
        torch.testing.assert_close(found, end_to_end(name), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(gae(*parts, seen.config.lam), end_to_end("advantages"), atol=1e-5, rtol=1e-4)


def test_functions_are_named_because_they_ran(small):
    def grid():
        vocabulary_grid.train(2, 1, 0, tried=False)

    ran = vocabulary_table.called(grid)
    assert {"maths.advantages.gae", "methods.ppo_update.policy_loss", "learn.update.Learner.update"} <= ran
    assert "maths.kl.k1" not in ran and "methods.ppo.look" not in ran  # the language model's own
    named = vocabulary_table.in_both(small.tables[0])
    assert {"maths.advantages.gae", "maths.policy.ratio", "maths.policy.clipped_surrogate", "methods.ppo_update.policy_loss"} <= set(named) and "maths.kl.k1" not in named
    # a table that names a function of one side only is found out
    false = Table("", small.tables[0].columns, [*small.tables[0].rows, ("KL", "", "", "", "maths.kl.k1")])
    check = vocabulary._calls(2, false)
    assert not check.held and "maths.kl.k1" in check.measured


# -- the record ---------------------------------------------------------------------------------------------------------


def test_a_state_is_the_prompt_and_all_tokens_so_far(recorded):
    seen, episodes = recorded
    for e, prompt, whole in zip(episodes, seen.batch.rollout.prompts, seen.batch.rollout.sequences(), strict=True):
        assert e.states[0] == prompt and seen.text(prompt)[:2] == ["count", "to"]
        for t in range(len(e)):
            assert len(e.states[t]) == len(prompt) + t and [*e.states[t], e.actions[t]] == whole[: len(prompt) + t + 1]
            assert math.log(e.chances[t][e.actions[t]]) == pytest.approx(e.logp[t], abs=1e-4)
    alone, forgotten = vocabulary_tokens.recomputed(seen)
    assert alone < 1e-4 < 0.01 < forgotten


def test_rewards_are_the_penalty_and_the_score_at_the_last(recorded):
    seen, episodes = recorded
    for e, ref in zip(episodes, seen.experience.logp_ref.tolist(), strict=True):
        score = e.score - (0.0 if e.terminated else 0.2)
        wanted = [-0.01 * (now - before) for now, before in zip(e.logp, ref, strict=False)]
        wanted[-1] += score
        assert e.rewards == pytest.approx(wanted, abs=1e-6)
        assert e.returns[0] == pytest.approx(sum(wanted), abs=1e-6) and e.returns[-1] == pytest.approx(e.rewards[-1])
    assert vocabulary_tokens.reward_error(seen) < 1e-5


def test_a_walk_is_recorded_as_it_was_walked():
    _, networks = vocabulary_grid.train(3, 1, 0, tried=False)
    for e in vocabulary_grid.episodes(vocabulary_grid.walks(3, networks, 1, 6), networks):
        world = vocabulary_grid.world(3)
        state, _ = world.reset(seed=0)
        for t in range(len(e)):
            assert state == e.states[t] and e.chances[t].sum() == pytest.approx(1)
            state, reward, over, *_ = world.step(e.actions[t])
            assert reward == pytest.approx(e.rewards[t]) and (e.discount[t] == 0) == over
        assert e.terminated == over and (over or len(e) == vocabulary_grid.LIMIT)
        if over:  # k steps pay (k - 1) * -0.01 + 1; discounted, a geometric sum
            k = len(e)
            assert e.score == pytest.approx(1 - 0.01 * (k - 1)) and e.returns[0] == pytest.approx(0.99 ** (k - 1) - 0.01 * (1 - 0.99 ** (k - 1)) / 0.01, abs=1e-5)


def test_counting_on():
    for size in range(2, 7):
        with vocabulary_tokens.words(size, 1, 0) as made:
            roles = open_roles(made.config, 0)
            for i, prompt in enumerate(made.prompts):
                right = " ".join(vocabulary_tokens.NUMBERS[i + 1 : size + 1])
                assert vocabulary_tokens.count_on([prompt], [right]) == [1.0]
                ids = roles.tokenizer(right).input_ids
                assert roles.decode([[*ids, *roles.tokenizer(vocabulary_tokens.END).input_ids]]) == [right]  # a word a token, and the end is no word
                assert len(ids) == size - i < made.config.max_new_tokens
        assert not made.folder.exists()


# -- the lab ------------------------------------------------------------------------------------------------------------


def test_the_small_lab_holds_and_says_what_it_measured(small):
    assert small.held, [c for c in small.checks if not c.held]
    words, learned = small.tables
    assert [row[0] for row in words.rows][:3] == ["state", "action", "next state"] and len(words.rows) >= 24
    rows = {row[0]: row for row in words.rows}
    assert rows["state"][3].startswith("'count to three from") and rows["ratio"][2].startswith("first 1,") and rows["ratio"][3].startswith("first 1,")
    for row, best in zip(learned.rows, (1 - 0.01, 1.0), strict=True):  # two moves at least: one costs 0.01, the other pays 1
        assert row[4] == pytest.approx(best) and row[2].mean <= best + 1e-9 and row[3].low > 0
    walk = small.values["walk"]
    assert rows["advantage"][2] == vocabulary_table.numbers(walk["advantages"])
    for curves in small.values["curves"].values():
        assert np.shape(curves) == (2, 12)


def test_the_figure_keeps_its_words_apart(small):
    figure = small.figures["vocabulary"]
    assert overlapping(figure) == [] and off_the_page(figure) == []
    assert any(t.get_text() == "<end>" for t in figure.axes[1].texts)


def test_the_same_seed_gives_the_same_run():
    runs = []
    for _ in range(2):
        with vocabulary_tokens.words(2, 2, 7) as made:
            runs.append(vocabulary_tokens.train(made, 7))
    assert runs[0].curve == runs[1].curve and runs[0].after == runs[1].after


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        (["size=7"], "size=7"),
        (["size=1"], "size=1"),
        (["steps=1"], "steps=1"),
        (["steps=10", "record=10"], "record=10 does not lie in the second half of steps=10; use 5 to 9"),
        (["steps=10", "record=4"], "use 5 to 9"),
        (["exercise=lost_state", "record=30"], "leave record out"),
        (["exercise=lost"], "exercise='lost'"),
        (["sizes=3"], "did you mean 'size'?"),
    ],
)
def test_what_cannot_be_run_is_refused(sets, said):
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        make_options(vocabulary.Options, sets)


def test_one_seed_gives_no_interval():
    with pytest.raises(ConfigError, match="use --seeds 2 or more"):
        vocabulary.run(vocabulary.Options(), [0])


# -- the lost state -----------------------------------------------------------------------------------------------------


def expected_score(chances: np.ndarray, wanted: int, longest: int) -> float:
    """Every completion of a policy of the prompt alone, enumerated; words 0, 1, ... are due in order, the last entry is the end."""
    end, total = len(chances) - 1, 0.0
    for tokens in itertools.product(range(end + 1), repeat=longest):
        said = tokens[: tokens.index(end)] if end in tokens else tokens
        if any(t != end for t in tokens[len(said) :]):
            continue  # what follows the end is not drawn: one way to write each completion
        chance = math.prod(chances[t] for t in said) * (chances[end] if len(said) < longest else 1.0)
        total += chance * sum(i == t for i, t in enumerate(said[:wanted])) / max(wanted, len(said))
    return total


@pytest.mark.parametrize(("wanted", "longest"), [(1, 4), (2, 4), (3, 4)])
def test_no_policy_of_the_prompt_alone_passes_the_bound(wanted, longest):
    bound = vocabulary_lost.prompt_only_bound(wanted, longest)
    rng = np.random.default_rng(0)
    found = max(expected_score(rng.dirichlet(np.full(wanted + 1, 0.5)), wanted, longest) for _ in range(60))
    best = max(expected_score(np.array([1 - q, *[0.0] * (wanted - 1), q]), wanted, longest) for q in np.linspace(0, 1, 101))
    assert found <= bound + 1e-9 and best == pytest.approx(bound, abs=1e-4) and best <= bound + 1e-6


def test_with_the_prompt_only_every_token_is_an_episode_of_its_own():
    with vocabulary_tokens.words(2, 1, 0) as made:
        roles = open_roles(made.config, 0)
        (kept, full, mean), (same, last, _) = (vocabulary_lost.blind(roles, made, 0, 1, 16, gamma) for gamma in (1.0, 0.0))
        assert kept.rollout.sequences() == same.rollout.sequences() and (kept.rollout.lengths_B == 1).all()
        assert all(len(p) == 5 for p in kept.rollout.prompts) and 0 <= mean <= 1
        ends = [i for i, s in enumerate(last) if s.value != 0]
        assert [last[i] for i in ends] == [full[i] for i in ends] and 0 < len(ends) < len(full)  # the last token's worth, and nothing before it


def test_the_state_is_lost_by_the_lab_too():
    found = vocabulary.run(vocabulary.Options(exercise="lost_state", size=2, steps=2), [0, 1])
    table = found.tables[0]
    assert [(row[0], row[1]) for row in table.rows] == [("prompt + tokens so far", 1.0), ("prompt + tokens so far", 0.0), ("prompt", 1.0), ("prompt", 0.0), ("prompt + tokens so far", 0.99)]
    assert overlapping(found.figures["vocabulary-lost-state"]) == [] and off_the_page(found.figures["vocabulary-lost-state"]) == []
    assert not found.checks[0].held  # two rollouts are too few to learn, and the lab says so
    assert "above" in vocabulary.expectation(vocabulary.Options()) and "bound" in vocabulary.expectation(vocabulary.Options(exercise="lost_state"))
