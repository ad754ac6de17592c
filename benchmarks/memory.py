"""Peak memory of LoRA SFT, LoRA PPO and PPO on four separate copies, at the same tokens in flight; prints one JSON object.

    python benchmarks/memory.py                                  # smollm2-135m, 2048 tokens in flight (minutes)
    python benchmarks/memory.py --model FOLDER --only sft,ppo

Every run is Truing's own, in a process of its own: two updates' worth of steps, so that Adam's moments are there. PPO has all
four models: with LoRA as adapters and heads on one backbone; "separate" trains every weight of policy and value model and
holds a full reference and a full reward model beside them. `planned` is what the table before the run says.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

WORDS = "the river runs past a small town where people trade stories about old machines and new songs".split()


def data(folder: Path, count: int) -> None:
    """Prompts and demonstrations of one length: 24 words of question, 48 of answer."""
    say = lambda i, n: " ".join(WORDS[(i + 3 * j) % len(WORDS)] for j in range(n))  # noqa: E731
    user = lambda i: {"role": "user", "content": say(i, 24)}  # noqa: E731
    write = lambda name, rows: (folder / name).write_text("".join(json.dumps(r) + "\n" for r in rows))  # noqa: E731
    write("prompts.jsonl", [{"id": f"p{i}", "prompt": [user(i)]} for i in range(count)])
    write("demos.jsonl", [{"id": f"d{i}", "messages": [user(i), {"role": "assistant", "content": say(i, 48)}]} for i in range(count)])


def reward_model(folder: Path, model: str, lora: Any) -> str:
    """An untrained reward model of the run's own shape; memory does not ask what it knows."""
    from truing.config import Stage
    from truing.models.heads import ScalarHead
    from truing.models.roles import open_backbone, policy_role, save_role, tokenizer_of

    backbone, source = open_backbone(model, Stage(model=model, lora=lora))
    role = policy_role(backbone, source, seed=0, purpose="reward")
    role.head = ScalarHead(backbone.width, seed=0, purpose="reward")
    save_role(role, folder / "rm", base=source.base, tokenizer=tokenizer_of(model))
    return str(folder / "rm")


def one(kind: str, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """One run, in this process."""
    from truing.config import PPO, SFT, Lora
    from truing.methods import memory_of_ppo, ppo, sft
    from truing.models import memory

    lora = None if kind == "separate" else Lora(layers=args.layers)
    shared: dict[str, Any] = {"model": args.model, "lora": lora, "micro_tokens": args.tokens, "batch_size": args.batch, "schedule": "constant", "warmup": 0.0}
    if kind == "sft":
        sft.sft(SFT(data=str(folder / "demos.jsonl"), eval_share=0.0, **shared), folder / kind, seed=0)
        return {"peak_mib": memory.highest() / 2**20}
    planned: list[float] = []
    real = memory_of_ppo.plan

    def plan(*given: Any) -> Any:
        made = real(*given)
        planned.append(made.peak)
        print(made, file=sys.stderr)
        return made

    memory_of_ppo.plan = plan  # type: ignore[assignment]
    ppo.ppo(PPO(prompts=str(folder / "prompts.jsonl"), reward=str(folder / kind / "rm"), steps=2, minibatches=1, epochs=1, max_new_tokens=64, **shared), folder / kind / "run", seed=0)
    return {"peak_mib": memory.highest() / 2**20, "planned_mib": planned[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=2048, help="micro_tokens: most tokens in one forward and backward")
    parser.add_argument("--batch", type=int, default=32, help="sequences per update")
    parser.add_argument("--layers", type=int, default=None, help="adapt only the top k layers")
    parser.add_argument("--only", default="sft,ppo,separate")
    parser.add_argument("--run", default="", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run == "reward":
        from truing.config import Lora

        reward_model(Path(args.folder), args.model, None if "separate" in args.folder else Lora(layers=args.layers))
        return
    if args.run:
        print(json.dumps(one(args.run, args, Path(args.folder))))
        return
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data(Path(folder), 2 * args.batch)
        again = [sys.executable, __file__, "--model", args.model, "--tokens", str(args.tokens), "--batch", str(args.batch), *(["--layers", str(args.layers)] if args.layers else [])]
        for kind in args.only.split(","):
            if kind != "sft":
                (Path(folder) / kind).mkdir()
                subprocess.run([*again, "--run", "reward", "--folder", str(Path(folder) / kind)], check=True)
            done = subprocess.run([*again, "--run", kind, "--folder", folder], check=True, stdout=subprocess.PIPE, text=True)
            found[kind] = {k: round(v, 1) for k, v in json.loads(done.stdout.splitlines()[-1]).items()}
    peak = {kind: values["peak_mib"] for kind, values in found.items()}
    ratios = {f"{a}_over_{b}": round(peak[a] / peak[b], 3) for a, b in (("ppo", "sft"), ("separate", "ppo")) if a in peak and b in peak}
    errors = {kind: round(v["planned_mib"] / v["peak_mib"] - 1, 3) for kind, v in found.items() if "planned_mib" in v}
    print(json.dumps({"model": args.model, "micro_tokens": args.tokens, "batch": args.batch, "layers": args.layers, **found, **ratios, "plan_error": errors}, indent=1))


if __name__ == "__main__":
    main()
