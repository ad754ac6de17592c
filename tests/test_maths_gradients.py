"""Every loss against finite differences in float64, and what may and may not receive a gradient."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from truing.maths import kl, reduce
from truing.maths.advantages import gae, group_centred, group_standardised, leave_one_out, whiten
from truing.maths.likelihood import CHUNK, _chunks, entropy, from_logits, token_likelihood
from truing.maths.policy import cispo, clipped_surrogate, ratio, reinforce, sequence_logp, sequence_logp_at_tokens
from truing.maths.preference import bradley_terry, centering
from truing.maths.returns import discounted_returns, lambda_returns, n_step_returns
from truing.maths.value import clipped_squared_error, squared_error

D = torch.float64
INF = float("inf")


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


X, Y, Z = (numbers(2, 4, seed=s) for s in (1, 2, 3))
COUNTED = tensor([[True, True, True, False], [True, True, False, False]])

LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "reinforce": lambda t: reinforce(t, Z),
    "ratio": lambda t: ratio(t, Y),
    "clipped_surrogate": lambda t: clipped_surrogate(t, Y, Z),
    "clipped_surrogate, all settings": lambda t: clipped_surrogate(t, Y, Z, 0.2, 0.3, 3.0),
    "gspo": lambda t: clipped_surrogate(sequence_logp(t, COUNTED), sequence_logp(Y, COUNTED), Z[:, 0]),
    "squared_error": lambda t: squared_error(t, Y),
    "clipped_squared_error": lambda t: clipped_squared_error(t, Y, Z, 0.2),
    "bradley_terry": lambda t: bradley_terry(t, Y, 0.5),
    "bradley_terry, rejected": lambda t: bradley_terry(Y, t),
    "centering": lambda t: centering(t, Y),
    "k1": lambda t: kl.k1(t, Y),
    "k2": lambda t: kl.k2(t, Y),
    "k3": lambda t: kl.k3(t, Y),
    "k3, weighted": lambda t: ratio(t, Z) * kl.k3(t, Y),
    "penalty k3": lambda t: kl.penalty(t, Y, Z, Z, "k3"),  # k2's weight is a constant, so its gradient is no derivative of its value
    "exact": lambda t: kl.exact(t, Y),
    "exact, reference": lambda t: kl.exact(Y, t),
    "entropy": entropy,
    "tokens": lambda t: reduce.tokens(t, COUNTED, 9),
    "sequences": lambda t: reduce.sequences(t, COUNTED, 3),
    "constant": lambda t: reduce.constant(t, COUNTED, 3, 7),
    "elements": lambda t: reduce.elements(t, 9),
    "gae": lambda t: gae(t, Y, Z, 0.9 * COUNTED, COUNTED, 0.8),
    "discounted_returns": lambda t: discounted_returns(t, Z, 0.9 * COUNTED, COUNTED.double()),
    "lambda_returns": lambda t: lambda_returns(t, Z, 0.9 * COUNTED, COUNTED.double(), 0.8),
    "n_step_returns": lambda t: n_step_returns(t, Z, 0.9 * COUNTED, COUNTED.double(), 2),
    "whiten": lambda t: whiten(t, COUNTED, eps=0.1),
    "group_centred": group_centred,
    "group_standardised": group_standardised,
    "leave_one_out": leave_one_out,
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_equal_finite_differences(name: str) -> None:
    assert torch.autograd.gradcheck(LOSSES[name], (X.clone().requires_grad_(),))


def test_rollout_quantities_are_constants_of_the_loss() -> None:
    logp, old, other = X.clone().requires_grad_(), Y.clone().requires_grad_(), Z.clone().requires_grad_()
    for loss in (reinforce(logp, other), clipped_surrogate(logp, Y, other), cispo(logp, Y, other), squared_error(logp, other)):
        assert torch.autograd.grad(loss.sum(), other, allow_unused=True, retain_graph=True) == (None,)
    assert torch.autograd.grad(cispo(logp, old, Z).sum(), old, allow_unused=True) == (None,)
    assert torch.autograd.grad(clipped_squared_error(logp, old, other, 0.2).sum(), (old, other), allow_unused=True) == (None, None)


def test_cispos_gradient_is_the_weighted_policy_gradient() -> None:
    logp = X.clone().requires_grad_()
    (found,) = torch.autograd.grad(cispo(logp, Y, Z, clip_low=0.2, clip_high=0.3).sum(), logp)
    torch.testing.assert_close(found, -(X - Y).exp().clamp(0.8, 1.3) * Z)


def test_the_token_variant_of_a_sequences_ratio_pulls_each_token_by_itself() -> None:
    logp = X.clone().requires_grad_()
    weights = tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]], dtype=D)
    (found,) = torch.autograd.grad((sequence_logp_at_tokens(logp, COUNTED) * weights).sum(), logp)
    assert found.tolist() == [[1.0, 2.0, 3.0, 0.0], [5.0, 6.0, 0.0, 0.0]]


# -- likelihood ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_likelihood_from_hidden_states_equals_softmax(temperature: float) -> None:
    h, w, b = (numbers(*s, seed=i).requires_grad_() for i, s in enumerate(((7, 5), (11, 5), (11,))))
    targets = torch.randint(0, 11, (7,), generator=torch.Generator().manual_seed(3))
    plain = ((h @ w.T + b) / temperature).log_softmax(-1)
    for chunk in (1, 3, 7, 512):
        logp, spread = token_likelihood(h, w, targets, bias=b, temperature=temperature, chunk=chunk)
        torch.testing.assert_close(logp, plain[range(7), targets])
        torch.testing.assert_close(spread, -(plain.exp() * plain).sum(-1))
    assert not spread.requires_grad and logp.requires_grad
    unbiased = token_likelihood(h, w, targets, temperature=temperature).logp
    torch.testing.assert_close(unbiased, (h @ w.T / temperature).log_softmax(-1)[range(7), targets])

    def both(h: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        found = token_likelihood(h, w, targets, bias=b, temperature=temperature, entropy_gradient=True, chunk=3)
        assert found.entropy.requires_grad or not (h.requires_grad or w.requires_grad or b.requires_grad)  # or gradcheck would pass it over
        return found.logp, found.entropy

    def logp_only(h: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        return token_likelihood(h, w, targets, bias=b, temperature=temperature, chunk=2).logp

    assert torch.autograd.gradcheck(both, (h, w, b))
    assert torch.autograd.gradcheck(logp_only, (h, w, b)) and torch.autograd.gradcheck(logp_only, (h, w))
    assert torch.autograd.gradcheck(logp_only, (h, w.detach())) and torch.autograd.gradcheck(logp_only, (h.detach(), w))
    assert torch.autograd.gradcheck(both, (h, w.detach(), b.detach())) and torch.autograd.gradcheck(both, (h.detach(), w.detach(), b))


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_likelihood_from_logits_equals_softmax(temperature: float) -> None:
    logits = (3 * numbers(2, 3, 5, seed=4)).requires_grad_()
    targets = torch.randint(0, 5, (2, 3), generator=torch.Generator().manual_seed(5))
    plain = (logits / temperature).log_softmax(-1)
    for chunk in (1, 4, 6, 512):
        logp, spread = from_logits(logits, targets, temperature=temperature, chunk=chunk)
        assert logp.shape == spread.shape == (2, 3) and not spread.requires_grad
        torch.testing.assert_close(logp, plain.gather(-1, targets[..., None]).squeeze(-1))
        torch.testing.assert_close(spread, entropy(logits.detach() / temperature))

    def both(x: Tensor) -> tuple[Tensor, Tensor]:
        found = from_logits(x, targets, temperature=temperature, entropy_gradient=True, chunk=4)
        assert found.entropy.requires_grad or not x.requires_grad
        return found.logp, found.entropy

    assert torch.autograd.gradcheck(both, (logits,))
    assert torch.autograd.gradcheck(lambda x: from_logits(x, targets, temperature=temperature, chunk=4).logp, (logits,))


def test_entropy_alone_has_its_gradient() -> None:
    logits, targets, eye = numbers(3, 4, seed=8).requires_grad_(), tensor([0, 1, 2]), torch.eye(4, dtype=D).requires_grad_()
    (expected,) = torch.autograd.grad(entropy(logits).sum(), logits)
    (found,) = torch.autograd.grad(from_logits(logits, targets, entropy_gradient=True).entropy.sum(), logits)
    torch.testing.assert_close(found, expected)
    through, head = torch.autograd.grad(token_likelihood(logits, eye, targets, entropy_gradient=True).entropy.sum(), (logits, eye))
    torch.testing.assert_close(through, expected)
    torch.testing.assert_close(head, torch.autograd.grad(entropy(logits @ eye.T).sum(), eye)[0])


def test_the_gradient_of_a_loss_with_both_is_the_sum_of_theirs() -> None:
    hidden, head, targets = numbers(5, 3, seed=9).requires_grad_(), numbers(4, 3, seed=10).requires_grad_(), tensor([0, 1, 2, 3, 3])
    plain = (hidden @ head.T).log_softmax(-1)
    expected = torch.autograd.grad((2 * plain[range(5), targets] + 3 * entropy(hidden @ head.T)).sum(), (hidden, head))
    found = token_likelihood(hidden, head, targets, entropy_gradient=True)
    torch.testing.assert_close(torch.autograd.grad((2 * found.logp + 3 * found.entropy).sum(), (hidden, head)), expected)
    logits = (hidden @ head.T).detach().requires_grad_()
    found = from_logits(logits, targets, entropy_gradient=True)
    (d_logits,) = torch.autograd.grad((2 * found.logp + 3 * found.entropy).sum(), logits)
    torch.testing.assert_close(d_logits @ head, expected[0])


class Operations(TorchDispatchMode):
    """Counts the operations on tensors that run under it."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_what_is_not_in_the_loss_costs_nothing_in_backward() -> None:
    hidden, logits, targets = numbers(5, 3, seed=9).requires_grad_(), numbers(5, 4, seed=10).requires_grad_(), tensor([0, 1, 2, 3, 3])
    for make in (lambda: token_likelihood(hidden, numbers(4, 3, seed=10), targets, entropy_gradient=True), lambda: from_logits(logits, targets, entropy_gradient=True)):
        cost = {}
        for name, gradients in {"logp": (1.0, None), "entropy": (None, 1.0), "both": (1.0, 1.0)}.items():
            pairs = [(output, torch.full_like(output, g)) for output, g in zip(make(), gradients, strict=True) if g is not None]
            with Operations() as operations:
                torch.autograd.backward([p[0] for p in pairs], [p[1] for p in pairs])
            cost[name] = operations.count
        assert cost["logp"] < cost["both"] and cost["entropy"] < cost["both"], cost


def test_defaults_are_a_temperature_of_one_and_no_entropy_gradient() -> None:
    logits = numbers(3, 4, seed=6).requires_grad_()
    found = from_logits(logits, tensor([0, 1, 2]))
    torch.testing.assert_close(found.logp, logits.log_softmax(-1)[range(3), range(3)])
    assert found.logp.requires_grad and not found.entropy.requires_grad
    hidden = token_likelihood(logits, torch.eye(4, dtype=D), tensor([0, 1, 2]))
    torch.testing.assert_close(hidden.logp, found.logp)
    torch.testing.assert_close(hidden.entropy, found.entropy)
    assert hidden.logp.requires_grad and not hidden.entropy.requires_grad


def test_an_excluded_choice_has_no_entropy_and_no_gradient() -> None:
    logits = tensor([[0.2, -INF, 0.7, -INF], [-INF, 0.0, -INF, -INF]], dtype=D, requires_grad=True)
    allowed = tensor([[0.2, 0.7]], dtype=D, requires_grad=True)
    found = from_logits(logits, tensor([2, 1]), entropy_gradient=True)
    few = from_logits(allowed, tensor([1]), entropy_gradient=True)  # the same choice among what is left
    torch.testing.assert_close(found.logp, torch.cat([few.logp, torch.zeros(1, dtype=D)]))
    torch.testing.assert_close(found.entropy, torch.cat([few.entropy, torch.zeros(1, dtype=D)]))
    for part in ("logp", "entropy"):
        (gradient,) = torch.autograd.grad(getattr(found, part).sum(), logits, retain_graph=True)
        (expected,) = torch.autograd.grad(getattr(few, part).sum(), allowed, retain_graph=True)
        torch.testing.assert_close(gradient[:1, [0, 2]], expected)
        assert gradient[0, [1, 3]].eq(0).all() and gradient[1].eq(0).all()
    (gradient,) = torch.autograd.grad(entropy(logits).sum(), logits)
    torch.testing.assert_close(gradient[:1, [0, 2]], torch.autograd.grad(entropy(allowed).sum(), allowed)[0])
    assert gradient[0, [1, 3]].eq(0).all() and gradient[1].eq(0).all()
    assert from_logits(logits, tensor([1, 1])).logp[0] == -INF  # and choosing it is impossible


def test_half_precision_logits_are_worked_in_float32() -> None:
    logits = (4 * numbers(6, 50, seed=7)).bfloat16().requires_grad_()
    targets = torch.arange(6)
    found = from_logits(logits, targets, entropy_gradient=True)
    wide = logits.detach().double().requires_grad_()
    exact = from_logits(wide, targets, entropy_gradient=True)
    assert found.logp.dtype == found.entropy.dtype == torch.float32
    torch.testing.assert_close(found.logp.double(), exact.logp, rtol=1e-5, atol=1e-5)  # bfloat16 itself is good to 4e-3
    torch.testing.assert_close(found.entropy.double(), exact.entropy, rtol=1e-5, atol=1e-5)
    (gradient,) = torch.autograd.grad(found.logp.sum() + found.entropy.sum(), logits)
    (expected,) = torch.autograd.grad(exact.logp.sum() + exact.entropy.sum(), wide)
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient.double(), expected, rtol=5e-3, atol=1e-6)


def kept_for_backward(function: Callable[[], Tensor]) -> list[tuple[int, int]]:
    """(address, elements) of every tensor that autograd keeps."""
    kept: list[tuple[int, int]] = []

    def pack(t: Tensor) -> Tensor:
        kept.append((t.data_ptr(), t.numel()))
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function()
    return kept


def test_nothing_of_the_vocabularys_size_is_kept_for_backward() -> None:
    n, v, d = 64, 1000, 8
    logits, targets = torch.randn(n, v, requires_grad=True), torch.zeros(n, dtype=torch.long)
    copies = [c for c in kept_for_backward(lambda: from_logits(logits, targets, entropy_gradient=True).logp) if c[1] >= n * v and c[0] != logits.data_ptr()]
    assert copies == []
    hidden, weight = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=True)
    assert [c for c in kept_for_backward(lambda: token_likelihood(hidden, weight, targets, entropy_gradient=True).logp) if c[1] >= n * v] == []
    plain = kept_for_backward(lambda: logits.log_softmax(-1)[range(n), targets])
    assert [c for c in plain if c[1] >= n * v and c[0] != logits.data_ptr()] != []  # what the usual way keeps


@pytest.mark.parametrize(("trained", "with_entropy", "copies"), [((True, True), True, 3), ((True, True), False, 2), ((False, True), True, 1), ((False, True), False, 1)])
def test_only_the_gradients_that_may_be_asked_for_are_kept(trained: tuple[bool, bool], with_entropy: bool, copies: int) -> None:
    # of [N, D]: the hidden states, and with a gradient wanted there d logp / d h, and dH / d h
    hidden, weight = torch.randn(6, 5, requires_grad=trained[0]), torch.randn(7, 5, requires_grad=trained[1])
    kept = kept_for_backward(lambda: token_likelihood(hidden, weight, torch.arange(6), entropy_gradient=with_entropy).logp)
    assert sum(size == 30 for _, size in kept) == copies


@pytest.mark.parametrize(("head_trained", "with_entropy", "forward", "backward"), [(False, False, 2, 0), (False, True, 3, 0), (True, False, 2, 2), (True, True, 3, 2)])
def test_a_frozen_head_is_multiplied_twice_a_token(head_trained: bool, with_entropy: bool, forward: int, backward: int) -> None:
    # logits and p W forward, with the entropy's gradient one more; backward only a trained head: the logits again and g^T h
    n, v, d = 6, 11, 5
    hidden, weight = torch.randn(n, d, requires_grad=True), torch.randn(v, d, requires_grad=head_trained)
    with FlopCounterMode(display=False) as flops:
        found = token_likelihood(hidden, weight, torch.arange(n), entropy_gradient=with_entropy, chunk=4)
    assert flops.get_total_flops() == forward * 2 * n * v * d
    with FlopCounterMode(display=False) as flops:
        (found.logp.sum() + found.entropy.sum()).backward()
    assert flops.get_total_flops() == backward * 2 * n * v * d


def test_a_chunk_is_as_large_as_it_says() -> None:
    first = _chunks(rows=10_000, at_once=CHUNK)[0]
    assert first.stop * 49_152 * 4 == 100_663_296  # bytes of float32 logits of the built-in model: the 100 MB of the comment


def test_chunks_cover_every_row_once_and_are_no_larger_than_asked() -> None:
    for n, chunk in ((0, 3), (1, 3), (3, 3), (7, 3), (9, 1)):
        rows = [list(range(n))[c] for c in _chunks(rows=n, at_once=chunk)]
        assert sum(rows, []) == list(range(n)) and all(0 < len(r) <= chunk for r in rows)


def test_no_rows_give_no_numbers() -> None:
    none = torch.zeros(0, dtype=torch.long)
    assert from_logits(torch.zeros(0, 4), none).logp.shape == (0,)
    assert token_likelihood(torch.zeros(0, 3), torch.zeros(4, 3), none).logp.shape == (0,)
