"""Bradley-Terry reward model: P(chosen beats rejected) = sigmoid(r(chosen) - r(rejected)).

``loss = mean over pairs of -log sigmoid(r_c - r_r - margin) + c (r_c + r_r)^2``. The score is the scalar head at the
last token of prompt + completion, which is the end-of-turn token. After training the head's bias is set so that held-out
scores average zero. Source: Ouyang et al. 2022 (arXiv 2203.02155), section 3.5.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from truing.config import Reward
from truing.data.batches import epoch_order
from truing.data.prepare import train_and_held
from truing.data.template import Renderer
from truing.errors import DataError
from truing.learn.inputs import fingerprint
from truing.learn.loop import steps
from truing.learn.run import Run
from truing.learn.update import Learner, parts
from truing.maths import reduce, stats
from truing.maths.preference import bradley_terry, centering
from truing.models.pack import Pack
from truing.models.roles import Role, open_backbone, policy_role, save_role, tokenizer_of
from truing.types import TokenPair


def reward_model(config: Reward, folder: Path, *, seed: int, progress: Any = None) -> dict[str, Any]:
    """Train a reward model on ``config.data``; it is saved in ``folder / "model"``.

    Returns held-out loss, accuracy and calibration error. Raises DataError when there are too few pairs to hold some out.
    """
    with Run.open(folder, fingerprint(config), seed=seed, progress=progress) as run:
        if run.done:
            return run.done
        tokenizer = tokenizer_of(config.model)
        renderer = Renderer(tokenizer)
        train, held = train_and_held(
            config.data, "preference", lambda r: renderer.pair(r, config.max_length), share=config.eval_share, seed=seed, on_bad=config.on_bad, folder=folder
        )
        if not held or not train:
            raise DataError(f"{config.data}: {len(train) + len(held)} pairs of one prompt or few leave none to hold out at eval_share={config.eval_share}; add pairs or raise it")
        backbone, source = open_backbone(config.model, config)
        model = policy_role(backbone, source, seed=seed, purpose="reward")
        model.head = backbone.head(seed, "reward-head")

        batches = [batch for epoch in range(config.epochs) for batch in _batches(train, config, seed, epoch)]
        learner = Learner(
            model.parameters(), lr=config.lr, total=len(batches), warmup=config.warmup, schedule=config.schedule, weight_decay=config.weight_decay,
            grad_clip=config.grad_clip, micro_tokens=config.micro_tokens,
        )  # fmt: skip
        for step in steps(run, learner, len(batches), every=config.save_every):
            batch = [train[i] for i in batches[step - 1]]
            seen: dict[str, float] = {}
            values = learner.update(
                range(len(batch)), lambda part, b=batch: tokens_of([b[i] for i in part]),  # type: ignore[misc]
                lambda part, b=batch, s=seen: loss(model, [b[i] for i in part], len(b), config.centering, s), again=seen.clear,  # type: ignore[misc]
            )  # fmt: skip
            run.log("metrics", step, {**values, **seen})
            if run.progress:
                run.progress.step(folder.name, step, {"loss": values["loss"], "accuracy": seen["accuracy"]}, len(batches))

        result: dict[str, Any] = {"pairs": len(train), "updates": len(batches), **evaluate(model, held, config.micro_tokens)}
        with torch.no_grad():
            model.head.bias.sub_(result.pop("score/mean"))  # centred on held-out data
        result["weights_sha256"] = save_role(model, folder / "model", base=source.base, tokenizer=tokenizer)
        run.finish(result)
        return run.done or result


def scores(model: Role, pairs: Sequence[TokenPair]) -> tuple[Tensor, Tensor]:
    """Scores of chosen and rejected, ``[P]`` each; a sequence that several pairs share runs through the model once."""
    index: dict[tuple[int, ...], int] = {}
    places = [[index.setdefault(side.ids, len(index)) for side in (p.chosen, p.rejected)] for p in pairs]
    score_B = model.score(Pack(list(index)))
    chosen, rejected = torch.tensor(places).T
    return score_B[chosen], score_B[rejected]


def loss(model: Role, pairs: Sequence[TokenPair], total: int, weight: float, seen: dict[str, float]) -> Tensor:
    """These pairs' share of the mean loss of `total` pairs; adds their share of the batch's metrics to `seen`."""
    chosen, rejected = scores(model, pairs)
    margin = torch.tensor([p.margin for p in pairs])
    with torch.no_grad():
        both = torch.cat([chosen, rejected])
        for name, value in (("accuracy", _wins(chosen, rejected).sum()), ("margin/mean", (chosen - rejected).sum()), ("score/mean", both.sum() / 2)):
            seen[name] = seen.get(name, 0.0) + float(value) / total
    return reduce.elements(bradley_terry(chosen, rejected, margin) + weight * centering(chosen, rejected), total)


@torch.no_grad()
def evaluate(model: Role, pairs: Sequence[TokenPair], micro_tokens: int) -> dict[str, float]:
    """Held-out loss, accuracy (ties count half), calibration error and mean score."""
    cut = parts(range(len(pairs)), lambda part: tokens_of([pairs[i] for i in part]), micro_tokens)
    chosen, rejected = (torch.cat(side) for side in zip(*(scores(model, [pairs[i] for i in part]) for part in cut), strict=True))
    # Each pair once each way, so that confidence and outcome are not tied to the order of writing.
    p = torch.sigmoid(torch.cat([chosen - rejected, rejected - chosen])).double().numpy()
    y = torch.cat([torch.ones_like(chosen), torch.zeros_like(chosen)]).double().numpy()
    return {
        "eval/pairs": len(pairs),
        "eval/loss": float(bradley_terry(chosen, rejected).mean()),
        "eval/accuracy": float(_wins(chosen, rejected).mean()),
        "eval/ece": stats.calibration_error(p, y),
        "score/mean": float(torch.cat([chosen, rejected]).mean()),
        "score/std": float(torch.cat([chosen, rejected]).std()),
    }


def _wins(chosen: Tensor, rejected: Tensor) -> Tensor:
    return (chosen > rejected).float() + 0.5 * (chosen == rejected).float()


def tokens_of(pairs: Sequence[TokenPair]) -> int:
    """Tokens these pairs put through the model: each distinct sequence once."""
    return sum(map(len, {side.ids for pair in pairs for side in (pair.chosen, pair.rejected)}))


def _batches(pairs: Sequence[TokenPair], config: Reward, seed: int, epoch: int) -> list[list[int]]:
    """An epoch's batches: whole groups of pairs that share sequences, in shuffled order, cut at batch_size pairs."""
    group_of = _groups(pairs) if config.group_prompts else list(range(len(pairs)))
    order = {group: rank for rank, group in enumerate(epoch_order(max(group_of) + 1, seed, epoch, "reward"))}
    ranked = sorted(range(len(pairs)), key=lambda i: (order[group_of[i]], i))
    size = min(config.batch_size, len(pairs))
    return [ranked[i : i + size] for i in range(0, len(ranked), size)]


def _groups(pairs: Sequence[TokenPair]) -> list[int]:
    """A number a pair, equal for pairs connected by a shared sequence."""
    root: dict[tuple[int, ...], tuple[int, ...]] = {}

    def find(x: tuple[int, ...]) -> tuple[int, ...]:
        while root.setdefault(x, x) != x:
            root[x] = x = root[root[x]]
        return x

    for pair in pairs:
        root[find(pair.chosen.ids)] = find(pair.rejected.ids)
    numbers: dict[tuple[int, ...], int] = {}
    return [numbers.setdefault(find(pair.chosen.ids), len(numbers)) for pair in pairs]
