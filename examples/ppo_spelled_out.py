"""PPO for language models with nothing hidden: one file, one loop, plain PyTorch around Truing's pure functions.

    python examples/ppo_spelled_out.py

A tiny random Llama learns to say words in alphabetical order. Four models: the policy, its frozen reference, a value model,
and a reward, a function here. `truing ppo` runs the same equations with packing, adapters, exact resume and a report (docs/ppo.md).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from truing.maths import kl, reduce, stats
from truing.maths.advantages import gae, whiten
from truing.maths.policy import clip_share, clipped_surrogate
from truing.maths.value import clipped_squared_error
from truing.models.load import tiny_model

WORDS = ["<end>", "<begin>", "ant", "bee", "cat", "dog", "elk", "fox"]
END, BEGIN, LONGEST = 0, 1, 6
BATCH, STEPS, EPOCHS, MINIBATCHES = 128, 60, 4, 4
CLIP, VALUE_CLIP, VALUE_WEIGHT, LAM, BETA, LR = 0.2, 0.2, 0.5, 0.95, 0.02, 4e-4


def reward(words: list[int]) -> float:
    """Neighbours in alphabetical order count 1, others -1; a completion that does not end loses 1."""
    said = [w for w in words if w > BEGIN]
    order = sum(1.0 if a < b else -1.0 for a, b in zip(said, said[1:], strict=False))
    return order - (words[-1] != END)


@torch.no_grad()
def generate(policy: nn.Module) -> tuple[Tensor, Tensor]:
    """Sample B completions after <begin>. Returns ids ``[B, 1 + T]`` and ``trained_BT``: True up to and including <end>."""
    ids, alive, trained = torch.full((BATCH, 1), BEGIN), torch.ones(BATCH, dtype=torch.bool), []
    for _ in range(LONGEST):
        token = policy(input_ids=ids).logits[:, -1].softmax(-1).multinomial(1)[:, 0]
        token[~alive] = END  # padding; the mask below says that it does not count
        trained.append(alive)
        ids, alive = torch.cat([ids, token[:, None]], 1), alive & (token != END)
    return ids, torch.stack(trained, 1)


def look(model: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log pi of every completion token, the entropy there, and the hidden state it was predicted from: one position earlier."""
    out = model(input_ids=ids, output_hidden_states=True)
    log_probs = out.logits[:, :-1].log_softmax(-1)
    return log_probs.gather(-1, ids[:, 1:, None])[..., 0], -(log_probs.exp() * log_probs).sum(-1), out.hidden_states[-1][:, :-1]


def main(seed: int = 0) -> float:
    torch.manual_seed(seed)
    policy, critic = (tiny_model(len(WORDS), seed=seed, hidden=64, bos_token_id=None, eos_token_id=END, pad_token_id=END) for _ in range(2))
    reference, head = copy.deepcopy(policy).requires_grad_(False), nn.Linear(64, 1)
    trained_weights = [*policy.parameters(), *critic.parameters(), *head.parameters()]
    adam = torch.optim.AdamW(trained_weights, lr=LR, eps=1e-5, weight_decay=0.0)

    for step in range(1, STEPS + 1):
        # collect: what was sampled is what is trained on, token for token
        ids, trained = generate(policy)
        last = trained.sum(-1) - 1
        scores = torch.tensor([reward(row[1 : n + 2].tolist()) for row, n in zip(ids, last.tolist(), strict=True)])

        # look: old policy, reference and values, before any weight changes; 0 at padding
        with torch.no_grad():
            logp_old, entropy, _ = look(policy, ids)
            logp_ref, values_old = look(reference, ids)[0], head(look(critic, ids)[2])[..., 0]
            logp_old, logp_ref, values_old = (torch.where(trained, x, 0.0) for x in (logp_old, logp_ref, values_old))

        # reward: the penalty at every token, the score at the last real one
        rewards = -BETA * kl.k1(logp_old, logp_ref)
        rewards[torch.arange(BATCH), last] += scores

        # advantage: the episode ends at its last token, so nothing is bootstrapped past it; targets are not whitened
        inside = (trained & (torch.arange(LONGEST) < last[:, None])).float()
        next_values = torch.cat([values_old[:, 1:], torch.zeros(BATCH, 1)], 1)
        raw = gae(rewards, values_old, next_values, discount=inside, carry=inside, lam=LAM)
        advantages, targets = whiten(raw, trained), raw + values_old

        # update: every completion once an epoch; losses give one number a token, `reduce` divides by the whole minibatch's count
        for _ in range(EPOCHS):
            for rows in torch.randperm(BATCH).chunk(MINIBATCHES):
                counted, total = trained[rows], int(trained[rows].sum())
                logp, values = look(policy, ids[rows])[0], head(look(critic, ids[rows])[2])[..., 0]
                surrogate = clipped_surrogate(logp, logp_old[rows], advantages[rows], CLIP)
                error = clipped_squared_error(values, values_old[rows], targets[rows], VALUE_CLIP)
                adam.zero_grad()
                reduce.tokens(surrogate + VALUE_WEIGHT * error, counted, total).backward()
                nn.utils.clip_grad_norm_(trained_weights, 1.0)
                adam.step()

        # record
        if step == 1 or step % 10 == 0:
            said = " ".join(WORDS[t] for t in ids[0, 1 : last[0] + 2])
            explained = stats.explained_variance(values_old[trained].numpy(), targets[trained].numpy())
            away, clipped = kl.k1(logp_old, logp_ref).sum() / BATCH, clip_share(logp, logp_old[rows], CLIP)[counted].mean()
            print(f"step {step:3}  score {scores.mean():5.2f}  KL {away:5.2f}  entropy {entropy[trained].mean():.2f}  clipped {clipped:.0%}  critic explains {explained:5.2f}  {said}")
    return float(scores.mean())


if __name__ == "__main__":
    main()
