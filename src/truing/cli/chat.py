"""`truing chat`: talk to a model, or to two at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from truing.cli import show

if TYPE_CHECKING:
    from truing.config import Sampling
    from truing.types import Message


def chat(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A built-in name, a hub id, or a stage's model such as runs/film/ppo/model.")],
    compare: Annotated[str | None, typer.Option(metavar="MODEL", help="A second model that answers the same messages.")] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest token, 1 is the model's own distribution.")] = 0.7,
    system: Annotated[str | None, typer.Option(help="A system message that opens every conversation.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k most likely tokens only.")] = None,
    top_p: Annotated[float, typer.Option(help="Draw from the fewest most likely tokens that together have at least this probability.")] = 1.0,
    min_p: Annotated[float, typer.Option(help="Draw from tokens at least this many times as likely as the likeliest.")] = 0.0,
    stop: Annotated[list[str] | None, typer.Option(metavar="TEXT", help="A text that ends an answer; may be repeated.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of one answer.")] = 128,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the answers.")] = 0,
    device: Annotated[str, typer.Option(metavar="cpu|cuda", help="Where the model is.")] = "cpu",
) -> None:
    """Talk to a model: one line is one message. /new forgets the conversation, /quit or Ctrl-D ends it."""
    from truing.config import Sampling, checked
    from truing.errors import DataError
    from truing.observe.report import visible
    from truing.types import Message

    sampling = checked(Sampling, {"top_k": top_k, "top_p": top_p, "min_p": min_p, "stop": stop or ()}, "truing chat")
    names = [model] if compare is None else [model, compare]
    answers = {name: talker(name, temperature, max_new_tokens, seed, sampling, device) for name in dict.fromkeys(names)}
    opening = () if system is None else (Message("system", system),)
    said = {name: opening for name in answers}
    asking = sys.stdin is not None and sys.stdin.isatty()
    if asking:
        print("/new forgets the conversation, /quit ends it")
    for turn, line in enumerate(_lines(asking)):
        if line == "/quit":
            break
        if line == "/new":
            said = {name: opening for name in answers}
            continue
        for name, answer in answers.items():
            asked = (*said[name], Message("user", line))
            try:
                text = answer(asked, turn)
            except DataError as problem:  # too long, or a control token typed in: the conversation goes on without it
                show.say(f"error: {problem}")
                continue
            said[name] = (*asked, Message("assistant", text))
            text = visible(text, limit=len(text))  # a model can say terminal control codes
            print(f"{name}: {text}" if compare is not None else text, flush=True)


def _lines(asking: bool) -> Iterator[str]:
    """What the person says, without empty lines, until the end of input."""
    while True:
        if asking:
            print("> ", end="", flush=True)
        line = sys.stdin.readline() if sys.stdin is not None else ""
        if not line:
            return
        if line.strip():
            yield line.strip()


def talker(name: str, temperature: float, max_new_tokens: int, seed: int, sampling: Sampling, device: str = "cpu") -> Callable[[tuple[Message, ...], int], str]:
    """The model as a function of the conversation and the turn's number; the same seed and turn give the same answer."""
    from truing.data.template import Renderer
    from truing.models.roles import open_role, tokenizer_of
    from truing.rollout.sampler import sample
    from truing.rollout.stopping import plain_text
    from truing.types import Prompt

    tokenizer, role = tokenizer_of(name), open_role(name, on=device)
    renderer = Renderer(tokenizer)
    context = role.backbone.context or 2048

    def answer(messages: tuple[Message, ...], turn: int) -> str:
        ids = renderer.prompt(Prompt(messages, "chat", "chat"), context - max_new_tokens)
        rollout = sample(
            role, [ids], max_new_tokens=max_new_tokens, temperature=temperature, sampling=sampling, stop_ids=renderer.stop_ids, decode=plain_text(tokenizer),
            seed=seed, step=turn, purpose="chat",
        )  # fmt: skip
        return str(tokenizer.decode(rollout.sequences()[0][len(ids) :], skip_special_tokens=True)).strip()

    return answer
