"""Supervised fine-tuning: maximise the likelihood of the assistant's tokens, and of nothing else.

``loss = -(1 / M) sum over trained tokens of log pi(token | everything before it)``, M = trained tokens of the whole batch.
The end-of-turn token is trained, so the model learns to stop. It is the policy gradient with every advantage equal to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from truing.config import SFT
from truing.data.batches import by_token_budget, epoch_order
from truing.data.prepare import train_and_held
from truing.data.template import Renderer
from truing.data.trained import require_stop, require_trained
from truing.learn.inputs import fingerprint
from truing.learn.loop import steps
from truing.learn.run import Run
from truing.learn.update import Learner
from truing.maths import reduce
from truing.models.pack import Pack
from truing.models.roles import Role, open_backbone, policy_role, save_role, tokenizer_of
from truing.types import Tokens


def sft(config: SFT, folder: Path, *, seed: int, progress: Any = None) -> dict[str, Any]:
    """Fine-tune ``config.model`` on ``config.data``; the trained role is saved in ``folder / "model"``.

    Returns the result: final losses, examples, weights hash. Completed folders return what they hold.
    """
    with Run.open(folder, fingerprint(config), seed=seed, progress=progress) as run:
        if run.done:
            return run.done
        tokenizer = tokenizer_of(config.model)
        renderer = Renderer(tokenizer)
        train, held = train_and_held(
            config.data, "sft", lambda r: renderer.demonstration(r, config.max_length), share=config.eval_share, seed=seed, on_bad=config.on_bad, folder=folder
        )
        require_stop(train, renderer.stop_ids, config.data)
        backbone, source = open_backbone(config.model, config)
        policy = policy_role(backbone, source, seed=seed, purpose="sft")

        size = min(config.batch_size, len(train))
        per_epoch = -(-len(train) // size)  # the last batch of an epoch may be smaller; none is left out
        total = per_epoch * config.epochs
        learner = Learner(
            policy.parameters(), lr=config.lr, total=total, warmup=config.warmup, schedule=config.schedule, weight_decay=config.weight_decay,
            grad_clip=config.grad_clip, micro_tokens=config.micro_tokens,
        )  # fmt: skip
        for step in steps(run, learner, total, every=config.save_every):
            epoch, place = divmod(step - 1, per_epoch)
            order = epoch_order(len(train), seed, epoch, "sft")
            batch = [train[i] for i in order[place * size : (place + 1) * size]]
            counted = require_trained(batch)
            values = learner.update(
                range(len(batch)), lambda part, b=batch: sum(len(b[i]) for i in part), lambda part, b=batch, n=counted: loss(policy, [b[i] for i in part], n)  # type: ignore[misc]
            )
            run.log("metrics", step, {**values, "tokens/trained": counted})
            if run.progress:
                run.progress.step(folder.name, step, {"loss": values["loss"]}, total)

        result: dict[str, Any] = {"examples": len(train), "updates": total}
        if held:
            result |= evaluate(policy, held, config.micro_tokens)
        result["weights_sha256"] = save_role(policy, folder / "model", base=source.base, tokenizer=tokenizer)
        run.finish(result)
        return run.done or result


def loss(policy: Role, batch: Sequence[Tokens], total: int) -> Tensor:
    """The batch's share of the mean negative log-likelihood of `total` trained tokens."""
    pack = Pack([t.ids for t in batch])
    trained_N = torch.tensor([flag for t in batch for flag in t.trained])
    positions = trained_N.nonzero().squeeze(-1) - 1  # the state a token is predicted from ends one before it
    logp = policy.likelihood(policy.hidden(pack, positions), pack, positions).logp
    return reduce.tokens(-logp, torch.ones_like(logp), total)


@torch.no_grad()
def evaluate(policy: Role, held: Sequence[Tokens], micro_tokens: int) -> dict[str, float]:
    """Held-out loss in nats a token, and the share of completions whose last token is the model's first choice there."""
    total, nats, ended = require_trained(held), 0.0, 0
    for part in by_token_budget([len(t) for t in held], micro_tokens):
        batch = [held[i] for i in part]
        nats += float(loss(policy, batch, total))
        pack = Pack([t.ids for t in batch])
        ended += int((policy.likeliest(pack, pack.last() - 1) == pack.ids_N[pack.last()]).sum())
    return {"eval/loss": nats, "eval/eos_share": ended / len(held)}
