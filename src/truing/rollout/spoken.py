"""What an environment says, as the tokens that stand between two turns of the model.

The model's turns are never rendered: they are the tokens that were sampled. What stands between the end of one and the start of
the next is what the chat template writes there, with the environment's own words as ordinary text, so that no ``<|im_end|>`` in
them becomes the control token.
"""

from __future__ import annotations

from truing.data.problems import BadRow
from truing.data.template import Renderer
from truing.types import Message, Messages

SOURCE = "what the environment said"
_SPOKEN = "x"  # stands for what the model said: what the template writes after a turn must not depend on it


def between(renderer: Renderer, roles: tuple[str, ...], heard: Messages | str, *, closed: bool = True) -> list[int]:
    """The tokens after a model's turn that was the last of ``roles``, through the next generation prompt.

    With a template: what it writes after the end-of-turn token, the messages, and what it writes to ask for an answer. A text is
    put there as it stands, and so are messages when there is no template, each in lines of its own. A turn that is not ``closed`` by
    its end-of-turn token, because a stop string ended it, gets that token first, where the template writes one.

    Raises BadRow when the template refuses these roles in this order, or rewrites a content; ModelError when it drops a turn.
    """
    if isinstance(heard, str) or renderer._template is None:
        text = heard if isinstance(heard, str) else "".join(f"\n{m.content}\n" for m in heard)
        return renderer._text_ids(text, SOURCE)
    if not heard or any(m.role == "assistant" for m in heard):
        said = ", ".join(m.role for m in heard) or "none"
        raise BadRow("environment_turn", f"an environment must answer with user, tool or system turns, and these are {said}; a Turn that is done may say nothing")
    messages = (*(Message(role, _SPOKEN) for role in roles), *heard)
    layout = renderer._layout(messages, True, SOURCE)
    contents = layout.contents(messages)
    renderer._check_text(messages, layout, contents, True, SOURCE)
    pieces = list(layout.pieces[len(roles) :])
    # as in a prompt: a blank before a content is one token with its first word
    leads = [piece[len(piece.rstrip(" ")) :] for piece in pieces[:-1]]
    pieces[:-1] = [piece.rstrip(" ") for piece in pieces[:-1]]
    after = renderer._template_ids(pieces[0], first=False)
    ids = after[renderer._through_end_of_turn(after) if closed else 0 :]
    for lead, content, piece in zip(leads, contents[len(roles) :], pieces[1:], strict=True):
        ids += renderer._text_ids(lead + content, SOURCE) + renderer._template_ids(piece, first=False)
    return ids
