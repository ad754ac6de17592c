"""Reading reward expressions: ``rm - 0.01 * excess_tokens(150)``, ``minimum(a, b)``, ``0.7 * helpful + 0.3 * safe``.

The text is read with Python's own parser and a whitelist of nodes; nothing is ever evaluated. No torch: the pipeline uses it.

A text without blanks that is something by itself is that thing, in this order: an address (``http://...``), an existing file
or folder, a function (``module:function``), a path or hub id (``org/name``). Everything else is an expression. So an existing
folder ``reports/rm-v2`` is that folder; put blanks around signs, and quote what an expression could not tell from a sign:
``learned("reports/rm-v2") - 1``.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from pathlib import Path

from truing.config import suggestion
from truing.errors import ConfigError
from truing.rewards import grammar
from truing.rewards.grammar import ATOMS, FUNCTION, WORDS, Atom, Combination, Name, Node, Number, Operation

LONGEST = 4000  # characters
DEEPEST = 60
_PATH = re.compile(r"(~|\.{0,2})/?[\w.@-]+(/[\w.@-]+)*/?")
_SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_ALLOWED = "an expression has numbers, stages or folders, + - * /, and " + ", ".join(WORDS)


def parse(text: str) -> Node:
    """The tree behind a text. Raises ConfigError with the position, the word and the remedy."""
    whole = itself(text)
    return whole if whole is not None else _Reader(text).tree()


def itself(text: str) -> Atom | None:
    """The atom that a whole text stands for, or None when it has to be read as an expression."""
    text = str(text).strip()
    if text.startswith(("http://", "https://")) and not re.search(r"\s", text):
        return grammar.atom("http", (text,))
    if _exists(text):
        return grammar.atom("learned", (text,))
    if FUNCTION.fullmatch(text):
        return grammar.atom("function", (text,))
    if "/" in text and _PATH.fullmatch(text) and not re.fullmatch(r"[\d.]+", text.rstrip("/").rpartition("/")[2]):
        return grammar.atom("learned", (text,))
    return None


def names(text: str) -> set[str]:
    """Everything in the text that may be the name of an earlier stage: bare names, and what `learned` is given."""
    found = list(grammar.walk(parse(text)))
    return {n.name for n in found if isinstance(n, Name)} | {str(n.arguments[0]) for n in found if isinstance(n, Atom) and n.kind == "learned"}


def folders(text: str) -> set[str]:
    """Everything in the text that is read as a model from the disk."""
    return {name for name in names(text) if _exists(name)}


def resolve(text: str, ready: Mapping[str, str]) -> str:
    """The text with stage names replaced by their folders; a text that names none comes back as it is.

    ``resolve("rm - 0.01 * tokens()", {"rm": "runs/x/rm/model"})`` is ``learned("runs/x/rm/model") - 0.01 * tokens()``.
    Raises ConfigError for a bare name that is neither in `ready` nor a folder.
    """
    if text in ready:
        return ready[text]
    if itself(text) is not None:
        return text
    reader = _Reader(text)
    tree = reader.tree()
    for name, place in reader.names.items():
        if name not in ready and not _exists(name):
            raise reader.error(place, name, "is neither an earlier stage nor a folder" + suggestion(name, [*ready, *WORDS]))
    found = _replaced(tree, ready)
    return text if found == tree else grammar.write(found)


def opened(text: str) -> Node:
    """The tree with every bare name taken for a folder. Raises ConfigError for one that is none."""
    whole = itself(text)
    if whole is not None:
        return whole
    reader = _Reader(text)
    tree = reader.tree()
    for name, place in reader.names.items():
        if not _exists(name):
            raise reader.error(place, name, "is no folder here" + suggestion(name, WORDS) + '. A hub id or a stage goes in quotes: learned("...")')
    if not grammar.atoms(tree) and not reader.names:
        raise reader.error(0, text, "is a constant, which prefers no completion to another; name something that scores")
    return _replaced(tree, {name: name for name in reader.names})


def _replaced(node: Node, ready: Mapping[str, str]) -> Node:
    if isinstance(node, Name):
        return grammar.atom("learned", (ready[node.name],)) if node.name in ready else node
    if isinstance(node, Atom):
        return grammar.atom("learned", (ready[str(node.arguments[0])],)) if node.kind == "learned" and node.arguments[0] in ready else node
    if isinstance(node, Operation):
        return Operation(node.sign, tuple(_replaced(p, ready) for p in node.parts))
    if isinstance(node, Combination):
        return Combination(node.kind, tuple(_replaced(p, ready) for p in node.parts), node.bounds)
    return node


def _exists(text: str) -> bool:
    try:
        return bool(text.strip()) and Path(text).exists()
    except (OSError, ValueError):  # longer than a file name can be; a NUL
        return False


class _Reader:
    """One reading of one text; knows where each word stood."""

    def __init__(self, text: str) -> None:
        self.text = str(text).replace("\r", " ").replace("\n", " ").replace("\t", " ").rstrip()
        self.indent = len(self.text) - len(self.text.lstrip())
        self.names: dict[str, int] = {}
        if not self.text.strip():
            raise ConfigError("reward: an empty text names nothing; give a folder, module:function or an expression")
        if len(self.text) > LONGEST:
            raise ConfigError(f"reward: an expression of {len(self.text)} characters; {LONGEST} is the most")

    def error(self, place: int, word: str, problem: str) -> ConfigError:
        shown = self.text if len(self.text) <= 200 else self.text[:200] + "..."
        message = f"reward {shown!r}: position {place + 1}: {word[:60]!r} {problem}"
        return ConfigError(re.sub(r"//[^/@\s]*@", "//***@", message))  # a password in an address

    def tree(self) -> Node:
        try:
            body = ast.parse(self.text.lstrip(), mode="eval").body
        except SyntaxError as error:
            place = min(max((error.offset or 1) - 1, 0) + self.indent, len(self.text) - 1)
            raise self.error(place, self.text[place:].split(" ")[0], self._why()) from None
        except (ValueError, MemoryError, RecursionError) as error:
            raise ConfigError(f"reward {self.text[:200]!r}: cannot be read ({error}); {_ALLOWED}") from None
        return self._node(body, 0)

    def _why(self) -> str:
        if re.search(r"[\w.]:[A-Za-z_]", self.text):
            return 'is not part of an expression; put a function in quotes: function("module:name") - 0.1 * tokens()'
        if "://" in self.text:
            return 'is not part of an expression; write an address as http("http://...")'
        return f"does not fit there. If a folder was meant, it does not exist; {_ALLOWED}"

    def _fail(self, node: ast.AST, problem: str) -> ConfigError:
        word = ast.get_source_segment(self.text.lstrip(), node) or ast.unparse(node)
        return self.error(self._place(node), word, problem)

    def _place(self, node: ast.AST) -> int:
        return self.indent + len(self.text.lstrip().encode()[: getattr(node, "col_offset", 0)].decode(errors="ignore"))

    def _node(self, node: ast.expr, depth: int) -> Node:
        if depth > DEEPEST:
            raise ConfigError(f"reward {self.text[:80]!r}...: nested more than {DEEPEST} deep; write sums of many parts as mean(...)")
        if isinstance(node, ast.Constant):
            return self._quoted(node) if isinstance(node.value, str) else Number(self._number(node))
        if isinstance(node, ast.Name):
            if node.id in WORDS:
                raise self._fail(node, f"is a function; write {node.id}(...)")
            self.names.setdefault(node.id, self._place(node))
            return Name(node.id)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            inner = self._node(node.operand, depth + 1)
            return grammar.negative(inner) if isinstance(node.op, ast.USub) else inner
        if isinstance(node, ast.BinOp):
            sign = _SIGNS.get(type(node.op))
            if sign is None:
                raise self._fail(node, f"uses a sign that is not known; {_ALLOWED}")
            return Operation(sign, (self._node(node.left, depth + 1), self._node(node.right, depth + 1)))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._call(node, node.func, depth)
        raise self._fail(node, f"is not understood; {_ALLOWED}")

    def _quoted(self, node: ast.Constant) -> Node:
        text = str(node.value)
        try:
            return itself(text) or grammar.atom("learned", (text,))
        except ConfigError as error:
            raise self._fail(node, f"does not name a reward: {error}") from None

    def _number(self, node: ast.expr) -> float:
        minus = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
        constant = node.operand if isinstance(node, ast.UnaryOp) else node
        try:
            found = grammar.number(constant.value if isinstance(constant, ast.Constant) else ast.unparse(constant))
        except ConfigError as error:
            raise self._fail(node, f"cannot stand here: {error}") from None
        return -found if minus else found

    def _call(self, node: ast.Call, function: ast.Name, depth: int) -> Node:
        kind = function.id
        if kind not in WORDS:
            raise self._fail(function, "is not a function of rewards" + suggestion(kind, WORDS))
        if any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords):
            raise self._fail(node, "spreads a list; write the parts out")
        try:
            if kind in ATOMS:
                return grammar.atom(kind, [self._plain(a) for a in node.args], {str(k.arg): self._plain(k.value) for k in node.keywords})
            if kind == "clip":
                given = dict(zip(("x", "low", "high"), node.args, strict=False)) | {str(k.arg): k.value for k in node.keywords}
                if set(given) != {"x", "low", "high"} or len(node.args) + len(node.keywords) != 3:
                    raise self._fail(node, "has other arguments than clip(x, low, high)")
                return grammar.combination(kind, [self._node(given["x"], depth + 1)], [self._number(given["low"]), self._number(given["high"])])
            if node.keywords:
                raise self._fail(node, f"names an argument; {kind} takes parts only")
            return grammar.combination(kind, [self._node(a, depth + 1) for a in node.args])
        except ConfigError as error:
            if str(error).startswith("reward "):
                raise
            raise self._fail(node, f"cannot be: {error}") from None

    def _plain(self, node: ast.expr) -> str | float | None:
        if isinstance(node, ast.Constant) and (isinstance(node.value, str) or node.value is None):
            return node.value
        return self._number(node)
