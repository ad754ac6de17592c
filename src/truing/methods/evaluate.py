"""Does the trained model do better? Two models, the same held-out prompts, the same random numbers, scores neither was trained on.

The unit of the bootstrap is the prompt, not the sample. KL is measured on the after-model's samples, token by token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from truing.config import Evaluate
from truing.data.batches import by_token_budget
from truing.disk import write_atomic
from truing.errors import ConfigError, RewardError
from truing.learn.inputs import fingerprint
from truing.learn.run import Run
from truing.maths import kl, stats
from truing.methods.answering import Answering
from truing.models.pack import Pack
from truing.models.roles import Role, open_role, origin, tokenizer_of
from truing.observe.monitor import distinct_n
from truing.rewards.completions import as_completions
from truing.rewards.episodes import Outcome
from truing.rewards.scorers import Completions, Scorer, find_scorer
from truing.rewards.verified import Verified
from truing.types import Prompt, Rollout, Score

Sample = dict[str, Any]  # text, tokens, finished, scores, answers


def evaluate(config: Evaluate, folder: Path, *, seed: int, progress: Any = None) -> dict[str, Any]:
    """Compare ``config.before`` and ``config.after``; writes ``evaluation.json`` into the folder and returns the summary."""
    with Run.open(folder, fingerprint(config), seed=seed, progress=progress) as run:
        if run.done:
            return run.done
        run.restore()
        tokenizer = tokenizer_of(config.before)
        before = open_role(config.before, on=config.device)
        answering = Answering(config, tokenizer, before.backbone.context, folder)
        records = answering.records
        if len(records) < 2:
            raise ConfigError(f"{config.prompts}: {len(records)} prompt; an interval over prompts needs 2 or more")
        base = origin(config.before).base
        after = open_role(config.after, share=before.backbone, share_base=base)
        scorers = {name: find_scorer(spec, share=before.backbone, share_base=base, tokenizer=tokenizer) for name, spec in config.scores.items()}
        verdict = config.verdict or next(iter(scorers), None)
        if verdict is not None and verdict not in scorers:
            raise ConfigError(f"verdict={verdict!r} is not one of the scores {', '.join(scorers)}")

        asked = [i for i in range(len(records)) for _ in range(config.samples)]
        drawn: dict[str, list[Sample]] = {}
        divergence: list[float] = []
        for which, role in (("before", before), ("after", after)):
            drawn[which], read = [], []
            for part in range(0, len(asked), 64):
                rows = range(len(asked))[part : part + 64]
                rollout, outcomes = answering.ask(role, [asked[i] for i in rows], temperature=config.temperature, seed=seed, step=0, samples=rows, purpose="evaluate")
                read.append(_read(rollout, [records[asked[i]] for i in rows], outcomes, tokenizer))
                drawn[which] += _scored(read[-1], rollout.lengths_B.tolist(), rollout.finished_B.tolist(), scorers)
                run.stop_if_asked()
                if run.progress:
                    run.progress.step(folder.name, (len(drawn["before"]) + len(drawn.get("after", []))) // 64, {}, 2 * -(-len(asked) // 64))
            if which == "after":
                divergence = [value for texts in read for value in _divergence(after, before, texts, config)]

        result = summary(records_text=[r.messages[-1].content for r in records], drawn=drawn, divergence=divergence, config=config, scorers=list(scorers), verdict=verdict)
        write_atomic(folder / "evaluation.json", json.dumps(result, indent=1, allow_nan=False).encode() + b"\n")
        run.finish({k: result[k] for k in ("difference", "win_rate", "kl_sequence", "length_ratio", "criteria")})
        return run.done or result


def summary(
    *, records_text: Sequence[str], drawn: Mapping[str, Sequence[Sample]], divergence: Sequence[float], config: Evaluate, scorers: Sequence[str], verdict: str | None
) -> dict[str, Any]:
    """The numbers of the verdict from the samples; everything here can be checked by hand from ``rows``."""
    k = config.samples
    table = {which: {name: np.array([s["scores"][name] for s in samples], float).reshape(-1, k) for name in scorers} for which, samples in drawn.items()}
    out: dict[str, Any] = {"prompts": len(records_text), "samples_per_prompt": k, "verdict_score": verdict}
    for which, samples in drawn.items():
        texts = [s["text"] for s in samples]
        out[which] = {
            "model": getattr(config, which),
            "tokens_mean": float(np.mean([s["tokens"] for s in samples])),
            "eos_share": float(np.mean([s["finished"] for s in samples])),
            **{f"distinct_{n}": distinct_n(texts, n) for n in (1, 2)},
            "scores": {name: float(np.mean(values)) for name, values in table[which].items()},
            "sd": {name: float(np.std(values, ddof=1)) for name, values in table[which].items()},
        }
    out["difference"], out["win_rate"] = {}, {}
    for name in scorers:
        a, b = table["after"][name], table["before"][name]
        gain = stats.bootstrap(a.mean(1) - b.mean(1))
        sd = float(np.std(b, ddof=1)) or float("nan")
        out["difference"][name] = {**gain._asdict(), **({f"sd_{n}": v / sd for n, v in zip(("units", "low", "high"), gain, strict=True)} if sd == sd else {})}
        # every sample of one model against every sample of the other on the same prompt; ties count half
        wins = ((a[:, :, None] > b[:, None, :]) + 0.5 * (a[:, :, None] == b[:, None, :])).mean((1, 2))
        out["win_rate"][name] = stats.bootstrap(wins)._asdict()
    out["kl_sequence"] = {**stats.bootstrap(np.array(divergence).reshape(-1, k).mean(1))._asdict(), "target": config.kl_target}
    out["length_ratio"] = out["after"]["tokens_mean"] / out["before"]["tokens_mean"]
    out |= attempts(drawn, k)
    out["criteria"] = _criteria(out, verdict, config)
    rows = {which: [list(samples[i : i + k]) for i in range(0, len(samples), k)] for which, samples in drawn.items()}
    out["rows"] = [{"prompt": p, "before": b, "after": a} for p, b, a in zip(records_text, rows["before"], rows["after"], strict=True)]
    return out


def attempts(drawn: Mapping[str, Sequence[Sample]], samples: int) -> dict[str, Any]:
    """For every verified score: pass@k and majority@k of both models and their difference, k = 1, 2, 4, ... samples, with intervals over prompts.

    A policy that has *learned* solves more prompts at the largest k too; one that was only *sharpened* solves the same ones more often.
    """
    out: dict[str, Any] = {"pass_at": {}, "majority_at": {}}
    ks = sorted({*(2**i for i in range(samples.bit_length())), samples})
    for name in next(iter(drawn.values()))[0].get("answers", {}):
        right = {which: np.array([s["scores"][name] >= 1 for s in found]).reshape(-1, samples) for which, found in drawn.items()}
        said = {which: [[s["answers"][name] for s in found[i : i + samples]] for i in range(0, len(found), samples)] for which, found in drawn.items()}
        passed = {which: {k: stats.pass_at_k(samples, r.sum(1), k) for k in ks} for which, r in right.items()}
        voted = {which: {k: np.array([stats.majority_at_k(a, r.tolist(), k, draws=200) for a, r in zip(said[which], right[which], strict=True)]) for k in ks} for which in drawn}
        votes = any(a is not None for found in said.values() for column in found for a in column)
        for key, table in (("pass_at", passed), ("majority_at", voted))[: 1 + votes]:
            gain = {k: table["after"][k] - table["before"][k] for k in ks}
            out[key][name] = {which: {str(k): stats.bootstrap(v)._asdict() for k, v in column.items()} for which, column in {**table, "gain": gain}.items()}
    return {key: value for key, value in out.items() if value}


def _criteria(out: Mapping[str, Any], verdict: str | None, config: Evaluate) -> list[dict[str, Any]]:
    rows = []
    checked = verdict in out.get("pass_at", {})  # an answer that is verified is right however long it is and however alike others are
    if verdict is not None:
        gain = out["difference"][verdict]
        if "sd_units" in gain and not checked:  # undefined when all scores of the before model are equal
            rows.append(("gold_gain_sd", gain["sd_units"], "at least 0.5 standard deviations", gain["sd_units"] >= 0.5))
        rows.append(("gold_interval_low", gain["low"], "above 0 (95% bootstrap over prompts)", gain["low"] > 0))
    if config.kl_target is not None:
        rows.append(("kl_sequence", out["kl_sequence"]["mean"], f"at most {2 * config.kl_target:g} nats", out["kl_sequence"]["mean"] <= 2 * config.kl_target))
    if checked:
        return [{"name": n, "measured": float(m), "threshold": t, "holds": bool(h)} for n, m, t, h in rows]
    rows.append(("length_ratio", out["length_ratio"], "0.6 to 1.5", 0.6 <= out["length_ratio"] <= 1.5))
    distinct = out["after"]["distinct_2"] / max(out["before"]["distinct_2"], 1e-9)
    rows.append(("distinct_2_ratio", distinct, "at least 0.5", distinct >= 0.5))
    return [{"name": n, "measured": float(m), "threshold": t, "holds": bool(h)} for n, m, t, h in rows]


def _read(rollout: Rollout, records: Sequence[Prompt], outcomes: Sequence[Score], tokenizer: Any) -> Completions:
    """Answers as scorers see them."""
    decode = lambda ids: [t.strip() for t in tokenizer.batch_decode([list(s) for s in ids], skip_special_tokens=True)]  # noqa: E731
    return as_completions(rollout, decode, [r.messages[-1].content for r in records], Pack(rollout.sequences()), [r.extra for r in records], outcomes)


def _scored(texts: Completions, lengths: list[int], finished: list[bool], scorers: Mapping[str, Scorer]) -> list[Sample]:
    columns: dict[str, list[float]] = {}
    answers = {name: scorer.answers(texts) for name, scorer in scorers.items() if isinstance(scorer, Verified)}
    answers |= {name: [None] * len(texts) for name, scorer in scorers.items() if isinstance(scorer, Outcome)}  # right or wrong, with nothing to vote on
    for name, scorer in scorers.items():
        scores = scorer(texts)
        bad = [s for s in scores if not s.status.usable]
        if bad:
            raise RewardError(f"score {name!r} failed on {len(bad)} of {len(scores)} completions, the first with {bad[0].status.value}: {next(iter(bad[0].parts), '')}")
        columns[name] = [s.value for s in scores]
    return [
        {"text": text, "tokens": n, "finished": bool(end), "scores": {name: column[i] for name, column in columns.items()}}
        | ({"answers": {name: found[i] for name, found in answers.items()}} if answers else {})
        for i, (text, n, end) in enumerate(zip(texts.transcripts or texts.texts, lengths, finished, strict=True))
    ]


@torch.no_grad()
def _divergence(after: Role, before: Role, texts: Completions, config: Evaluate) -> list[float]:
    """Sum over completion tokens of log pi_after - log pi_before, one number a sequence: the k1 estimate of KL(after || before)."""
    out: list[float] = []
    for rows in by_token_budget(texts.pack.lengths, config.micro_tokens):
        part = texts.select(rows)
        positions = part.packed() - 1
        logp = [role.likelihood(role.hidden(part.pack, positions), part.pack, positions, temperature=config.temperature).logp for role in (after, before)]
        out += [float(x.sum()) for x in kl.k1(*logp).split(part.lengths)]
    return out
