"""`$name` and a tiny arithmetic: + - * // and parentheses over numbers. No calls, no attributes, no `eval`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from deepcv.nn.spec.errors import closest

Scalar = bool | int | float | str | None
MAX_LENGTH = 100
MAX_VALUE = 2**53  # beyond it a float is no longer exact, and nothing in a network is that large
TOKEN = re.compile(r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|\$(?P<name>\w+)|(?P<sign>//|[-+*()]))")


@dataclass(frozen=True)
class Formula:
    """A value that waits for `$classes`, the number of classes that `build` is told."""

    text: str


CLASSES = {"classes": Formula("$classes")}
Value = Scalar | Formula | tuple["Value", ...]


class FormulaError(Exception):
    """A formula that cannot be computed; the caller adds the place."""


def evaluate(text: str, names: Mapping[str, Value]) -> Value:
    """The value of a text with `$` in it. A lone `$name` may be of any type, arithmetic takes numbers.

    Where a name still waits for `$classes`, so does the result: a Formula in which all other names are filled in.
    """
    if len(text) > MAX_LENGTH:
        raise FormulaError(f"a formula has at most {MAX_LENGTH} characters")
    tokens = _tokens(text)
    for token in tokens:
        if token.startswith("$") and token[1:] not in names:
            raise FormulaError(f"unknown parameter {token!r} in {text!r}; {closest(token, ['$' + n for n in names])}")
    if len(tokens) == 1 and tokens[0].startswith("$"):
        return names[tokens[0][1:]]
    used = {token: names[token[1:]] for token in tokens if token.startswith("$")}
    for token, value in used.items():
        if isinstance(value, bool | str | None):
            raise FormulaError(f"{token} is {value!r}, and arithmetic takes numbers, in {text!r}")
    result = _Parser(text, tokens, {k: v for k, v in used.items() if isinstance(v, int | float)}).whole()
    if any(isinstance(value, Formula) for value in used.values()):
        filled = "".join(_filled(token, used) for token in tokens)
        if len(filled) > MAX_LENGTH:
            raise FormulaError(f"{text!r} has more than {MAX_LENGTH} characters once its names are filled in")
        return Formula(filled)
    return result


def _tokens(text: str) -> list[str]:
    tokens, place, end = [], 0, len(text.rstrip())
    while place < end:
        match = TOKEN.match(text, place)
        if match is None:
            raise FormulaError(
                f"cannot read {text[place:].strip()!r} in {text!r}: a formula has $names, numbers, + - * // and ( )"
            )
        tokens.append(match[0].strip())
        place = match.end()
    return tokens


def _filled(token: str, used: Mapping[str, Value]) -> str:
    value = used.get(token, token)
    if isinstance(value, Formula):
        return value.text if value.text == "$classes" else f"({value.text})"
    return f"({value})" if isinstance(value, int | float) and value < 0 else str(value)


class _Parser:
    """Recursive descent. A name without a number stands for 1 in sums and products: only the form is checked then."""

    def __init__(self, text: str, tokens: list[str], numbers: Mapping[str, int | float]) -> None:
        self.text, self.tokens, self.numbers = text, tokens[::-1], numbers
        self.waits = any(token.startswith("$") and token not in numbers for token in tokens)

    def whole(self) -> int | float:
        value = self.sum()
        if self.tokens:
            raise FormulaError(f"unexpected {self.tokens[-1]!r} in {self.text!r}")
        return value

    def sum(self) -> int | float:
        value = self.product()
        while self.tokens and self.tokens[-1] in "+-":
            sign = 1 if self.tokens.pop() == "+" else -1
            value = self.bounded(value + sign * self.product())
        return value

    def product(self) -> int | float:
        value = self.atom()
        while self.tokens and self.tokens[-1] in {"*", "//"}:
            divides = self.tokens.pop() == "//"
            right = self.atom()
            if not divides:
                value = self.bounded(value * right)
            elif right != 0:
                value = self.bounded(value // right)
            elif not self.waits:
                raise FormulaError(f"division by zero in {self.text!r}")
        return value

    def atom(self) -> int | float:
        token = self.tokens.pop() if self.tokens else "the end"
        if token == "-":  # noqa: S105  a sign, not a password
            return -self.atom()
        if token == "(":  # noqa: S105
            value = self.sum()
            if not self.tokens or self.tokens.pop() != ")":
                raise FormulaError(f"a parenthesis is not closed in {self.text!r}")
            return value
        if token.startswith("$"):
            return self.numbers.get(token, 1)
        if token[0].isdigit() or token[0] == ".":
            return self.bounded(int(token) if token.isdigit() else float(token))
        raise FormulaError(f"unexpected {token} in {self.text!r}: expected a number or a $name")

    def bounded(self, value: int | float) -> int | float:
        if abs(value) > MAX_VALUE:
            raise FormulaError(f"a value beyond {MAX_VALUE} in {self.text!r}")
        return value
