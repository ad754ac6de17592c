"""The lab of verifiable rewards: its world, its statistics, its figures, and that on the policy's own samples the loss is 0 and its gradient is not."""

from __future__ import annotations

import doctest
import json
from collections import Counter

import numpy as np
import pytest
import torch

from test_labs_figures import off_the_page, overlapping
from truing.config import make_options
from truing.data.template import Renderer
from truing.errors import ConfigError
from truing.labs import verifiable, verifiable_draw, verifiable_groups, verifiable_runs, verifiable_world
from truing.labs.verifiable_groups import of, ratio
from truing.labs.verifiable_runs import Measured, Study, Trained, nested, stage_of, train
from truing.labs.verifiable_world import TASKS, answers, policy, questions, reader, right, shared, world
from truing.methods.groups import advantages
from truing.methods.grpo_loss import Before, reduced, token_losses
from truing.methods.ppo_update import Seen
from truing.rewards.verifiers.verifier import open_verifier
from truing.rollout.sampler import sample

HELD, PROMPTS = 12, 40


@pytest.mark.parametrize("module", (verifiable, verifiable_world, verifiable_runs, verifiable_groups, verifiable_draw))
def test_examples(module):
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0


@pytest.fixture(scope="module")
def warm():
    with world("rotate_matrix", 7, until=0.05, prompts=PROMPTS, heldout=HELD) as w:
        yield w


def rows_of(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- the world ----------------------------------------------------------------------------------------------------------


def test_no_question_stands_in_two_of_the_three_sets(warm):
    held, shown, asked = rows_of(warm.heldout), rows_of(warm.folder / "demonstrations-2000.jsonl"), rows_of(warm.prompts)
    texts = [row["question"] for row in held + asked] + [row["prompt"] for row in shown]
    assert (len(held), len(shown), len(asked)) == (HELD, warm.task.demonstrations, PROMPTS)
    assert max(Counter(texts).values()) == 1
    assert {row["verifier"] for row in held + asked} == {"reasoning_gym"}
    verifier = open_verifier("reasoning_gym")
    assert all(score.value == 1 for score in verifier([row["answer"] for row in held], held))  # what is imitated is right


def test_seeds_have_other_questions_and_the_same_seed_the_same():
    task = TASKS["spell_backward"]
    one, again, other = ([row["question"] for row in questions("spell_backward", task, seed, 100)] for seed in (0, 0, 1))
    assert one == again and len(set(one) & set(other)) < 10  # of 20,000 words or so, 100 and 100 have few in common
    assert one[1:] != other[:-1]  # the next seed is not the same rows, one further


def test_a_task_with_too_few_questions_says_so():
    with pytest.raises(ConfigError, match="different questions among 1600, and 1000 are needed; ask for fewer prompts"):
        questions("chain_sum", TASKS["chain_sum"]._replace(options={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}), 0, 1000)  # 2 * 10 * 10 at most


@pytest.mark.parametrize("name", list(TASKS))
def test_a_digit_a_letter_and_an_operator_are_one_token_each_and_nothing_is_lost(name):
    rows = questions(name, TASKS[name], 3, 60)
    asked, given = [row["question"] for row in rows], [row["answer"] for row in rows]
    tokenizer = reader(asked, given)
    for question, answer in zip(asked, given, strict=True):
        ids = tokenizer(question, add_special_tokens=False).input_ids
        assert tokenizer.decode(ids) == question and tokenizer.decode(tokenizer(answer).input_ids) == answer
        assert tokenizer.pad_token_id not in ids  # the unknown token
        assert len(ids) <= 24 and len(tokenizer(answer).input_ids) < TASKS[name].longest
        assert all(len(piece) == 1 for piece in tokenizer.tokenize(answer) if piece.isalnum())


def test_shared_phrases_hold_no_number_and_need_more_than_half_of_the_texts():
    assert shared(["add 1 to 2", "add 3 to 4", "take 5 from 6"]) == {"add ", " to "}  # in two of three
    assert shared(["add 1 to 2", "take 3 from 4"]) == {" "}  # in one of two, and a blank
    assert shared(["7 7", "7 8"]) == {" "}


def test_what_counts_as_right_is_what_the_data_set_scores_1(warm):
    from reasoning_gym import create_dataset

    rows = rows_of(warm.heldout)
    found = right(warm.warm, rows, warm.task.longest, samples=5, seed=3)
    role, tokenizer = policy(warm.warm)
    starts = [tokenizer(row["question"], add_special_tokens=False).input_ids for row in rows for _ in range(5)]
    rollout = sample(role, starts, max_new_tokens=warm.task.longest, temperature=1.0, stop_ids=Renderer(tokenizer).stop_ids, seed=3, step=0, purpose="labs.verifiable")
    scorer = create_dataset("rotate_matrix", size=1, seed=0, **warm.task.options)
    for i, (tokens, n) in enumerate(zip(rollout.completion_BT, rollout.lengths_B, strict=True)):
        said = tokenizer.decode([t for t in tokens[:n].tolist() if t > 1])
        assert found[i // 5, i % 5] == (scorer.score_answer(said, {"answer": rows[i // 5]["answer"], "metadata": {}}) == 1)


def test_the_most_likely_answer_is_the_same_however_often_it_is_asked_for(warm):
    found = answers(*policy(warm.warm), rows_of(warm.heldout), warm.task.longest, samples=3, seed=1, temperature=0.0)
    assert found.shape == (HELD, 3) and (found == found[:, :1]).all()


# -- the runs -----------------------------------------------------------------------------------------------------------


def test_a_run_is_the_pipelines_stage_watched_from_its_start_to_its_end(warm):
    rows = rows_of(warm.heldout)
    before = answers(*policy(warm.warm), rows, warm.task.longest, samples=verifiable_runs.FEW, seed=5).mean()
    run = train(warm, rows, "grpo", 5, 8, {"preset": "grpo", "steps": 4, "batch_size": 16, "group": 4})
    assert run.at == [0, 1, 2, 3, 4] and run.accuracy[0] == before and len(run.log) == 4
    end = answers(*policy(warm.folder / "run-grpo" / "model"), rows, warm.task.longest, samples=verifiable_runs.FEW, seed=5).mean()
    assert run.accuracy[-1] == end  # the weights of the last checkpoint are those of the model that was saved
    assert run.correct.shape == (HELD,) and 0 <= run.correct.min() and run.correct.max() <= 8


def test_the_flipped_reward_is_the_reward_with_the_other_sign(warm):
    run = train(warm, rows_of(warm.heldout), "flipped", 5, 2, {**verifiable.WRONG["flipped"], "steps": 1, "batch_size": 128, "group": 4})
    assert run.log[0]["reward/proxy"] <= 0 and run.log[0]["reward/proxy"] == -run.log[0]["part/verified"] != 0


# -- on-policy: the loss is 0, its gradient is not ----------------------------------------------------------------------


@pytest.mark.parametrize("preset", ("grpo", "dr_grpo", "rloo"))
def test_on_policy_the_loss_is_zero_and_its_gradient_is_not(warm, preset):
    """All completions of two groups have 3 tokens, so that every reduction weighs them alike; the advantages of a group add up to 0, and the ratio is 1."""
    config = stage_of(warm, preset=preset, group=4, batch_size=8, kl={"coef": 0.0})
    rewards = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 1])
    given = advantages(rewards, [[0, 1, 2, 3], [4, 5, 6, 7]], config)
    logits = torch.randn(8, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    said = torch.arange(24).reshape(8, 3) % 5
    logp = logits.log_softmax(-1).gather(-1, said[..., None]).squeeze(-1)
    counted = torch.ones(8, 3, dtype=torch.bool)
    seen = Seen()
    seen.begin()
    before = Before(given[:, None].expand(8, 3).double(), logp.detach())
    losses = token_losses(logp, torch.zeros_like(logp), before, counted, config, seen)
    loss = reduced(losses, counted, config, tokens=24, sequences=8)
    (gradient,) = torch.autograd.grad(loss, logits)
    loss = loss.detach()
    if preset == "rloo":  # no ratio: the loss is -A log pi, whose value means nothing, and whose gradient is the same thing
        assert abs(float(loss)) > 1e-3
    else:
        assert float(loss) == pytest.approx(0.0, abs=1e-7)
    # d/dlogits of -A log pi = -A (onehot - softmax), over 24 tokens, 8 completions of max_new_tokens, or 8 completions
    share = {"grpo": 1 / 24, "dr_grpo": 1 / (8 * config.max_new_tokens), "rloo": 1 / 8}[preset]
    expected = -given[:, None, None] * (torch.nn.functional.one_hot(said, 5) - logits.detach().softmax(-1)) * share
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)
    assert float(gradient.abs().max()) > 1e-3


# -- statistics ---------------------------------------------------------------------------------------------------------


def made(before, after, samples: int = 4, label: str = "grpo") -> Measured:
    studies = [
        Study(seed, 3, samples, np.array(b, float), {label: Trained([0, 1], [0.1, 0.2], np.array(a, float), [{"reward/proxy": 0.5, "policy/entropy": 0.3}], 2.0)})
        for seed, (b, a) in enumerate(zip(before, after, strict=True))
    ]
    return Measured(studies)


def test_pass_at_k_of_the_studies_is_the_unbiased_estimate():
    m = made([[1, 0]], [[2, 4]])
    assert m.ks == [1, 2, 4]
    np.testing.assert_allclose(m.passed(2), [[0.5, 0.0]])  # 1 - C(3, 2) / C(4, 2) = 1 - 3 / 6
    np.testing.assert_allclose(m.passed(2, "grpo"), [[5 / 6, 1.0]])  # 1 - C(2, 2) / C(4, 2)
    assert m.gain("grpo").mean == pytest.approx((0.25 + 1.0) / 2)
    assert made([[1]], [[1]], samples=6).ks == [1, 2, 4]


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    (
        ([1, 1, 1, 1], [4, 4, 4, 4], "sharpened"),  # each was solved by one of four answers already
        ([0, 0, 0, 0], [4, 4, 4, 4], "learned"),
        ([2, 2, 1, 1], [4, 4, 4, 0], "sharpened"),  # one question lost, and an interval that holds 0
        ([1] * 12, [4] * 9 + [0] * 3, "sharpened, and narrowed"),
        ([2, 2, 2, 2], [2, 2, 2, 2], "no gain"),
        ([2, 2, 2, 2], [1, 1, 1, 1], "unlearned"),
    ),
)
def test_learned_or_sharpened_is_told_by_the_largest_k(before, after, kind):
    assert made([before] * 3, [after] * 3).kind("grpo") == kind


def test_the_interval_counts_seeds_and_their_questions():
    within = np.tile([0.0, 1.0], (1, 200))
    alone, thrice = nested(within), nested(np.repeat(within, 3, 0))
    assert alone.high - alone.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(400), rel=0.1)
    assert thrice.high - thrice.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(1200), rel=0.1)
    seeds = nested(np.array([[0.1] * 50, [0.2] * 50, [0.6] * 50]))  # nothing varies within a seed: the seeds are all there is
    assert (seeds.mean, seeds.low, seeds.high) == pytest.approx((0.3, 0.1, 0.6))


def test_checks_hold_and_fail_as_they_say():
    options = verifiable.Options(method="grpo", task="rotate_matrix")
    good = verifiable.findings(options, {"rotate_matrix": made([[1, 1, 1, 1]] * 3, [[4, 4, 4, 4]] * 3)})
    assert good.held and good.checks[0].measured == "+75.0 [+75.0, +75.0]" and "sharpened" in good.checks[1].measured
    poor = verifiable.findings(options, {"rotate_matrix": made([[1, 1, 1, 1]] * 3, [[1, 1, 1, 2]] * 3)})  # 6.25 points
    assert not poor.checks[0].held
    wrong = verifiable.Options(exercise="flipped")
    fallen, risen = (verifiable.findings(wrong, {"rotate_matrix": made([[2, 2]], [[after, after]], label="flipped")}) for after in (0, 3))
    assert fallen.held and not risen.held


def test_the_variance_of_a_groups_mean_by_hand():
    g = of([[[1, 1, 0, 0]]], 2)
    # groups (1, 1) and (0, 0): means 1 and 0, variance 1/2; p (1 - p) is estimated by 4/3 * 1/4, over G = 2; both say nothing;
    # of the 6 pairs of the four answers one is all right and one all wrong
    assert (float(g.variance[0, 0]), float(g.silent[0, 0])) == (0.5, 1.0)
    assert (float(g.expected[0, 0]), float(g.silent_expected[0, 0])) == pytest.approx((1 / 6, 1 / 3))


def test_more_answers_make_a_better_baseline_as_one_over_g():
    rng = np.random.default_rng(0)
    drawn = rng.random((3, 300, 256)) < rng.uniform(0, 1, (3, 300, 1))
    every = {size: of(drawn, size) for size in verifiable_groups.SIZES}
    for small, large in ((4, 16), (16, 64)):
        found = ratio(every[small].variance, every[large].variance)
        assert found.low < 4 < found.high and found.high - found.low < 1
    for size, g in every.items():
        # p (1 - p) averages 1/2 - 1/3 over p uniform in [0, 1]; the chance of G equal answers is 2 / (G + 1); four standard errors of 900 questions
        assert g.variance.mean() == pytest.approx(1 / 6 / size, rel=4 * g.variance.std() / g.variance.mean() / 30)
        assert g.silent.mean() == pytest.approx(2 / (size + 1), abs=4 * g.silent.std() / 30)
        assert g.silent_expected.mean() == pytest.approx(2 / (size + 1), abs=4 * g.silent_expected.std() / 30)


# -- options and figures ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "message"),
    (
        (["batch=10", "group=4"], "batch=10 is not a multiple of group=4; each group must be whole"),
        (["task=sudoku"], "task='sudoku'"),
        (["until=1"], "until=1"),
        (["group=1"], "group=1"),
    ),
)
def test_options_that_cannot_be_meant_are_refused(sets, message):
    with pytest.raises(ConfigError, match=message):
        make_options(verifiable.Options, sets)


@pytest.mark.parametrize("names", (list(TASKS), list(TASKS)[:1], list(TASKS)[:3]))
def test_figures_are_whole_and_nothing_in_them_touches(names):
    methods = verifiable.METHODS
    rng = np.random.default_rng(0)

    def study(seed: int) -> Study:
        runs = {m: Trained([0, 100, 200], [0.3, 0.5 + 0.01 * i, 0.6], rng.integers(20, 64, 30).astype(float), [{"reward/proxy": 0.1}], 9.0) for i, m in enumerate(methods)}
        return Study(seed, 5, 64, rng.integers(0, 40, 30).astype(float), runs)

    found = verifiable.findings(verifiable.Options(), {name: Measured([study(s) for s in range(3)]) for name in names})
    for figure in found.figures.values():
        assert overlapping(figure) == [] and off_the_page(figure) == []
    assert len(found.tables[0].rows) == 3 * len(names) and len(found.checks) == 4 * len(names)
    json.dumps(found.document(), allow_nan=False)
