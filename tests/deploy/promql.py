"""A parser of the part of PromQL that deploy/ uses: what an expression is made of, not what it evaluates to."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

RANGE_OF_COUNTER = {"rate", "increase"}
RANGE_OF_GAUGE = {"delta", "avg_over_time", "max_over_time", "changes"}
OF_VECTOR = {"clamp_min", "sort_desc"}
AGGREGATIONS = {"sum", "avg", "min", "max", "count"}
PRECEDENCE = [("or",), ("and", "unless"), ("==", "!=", "<=", "<", ">=", ">"), ("+", "-"), ("*", "/")]

TOKEN = re.compile(
    r"\s*(?P<number>\d+(?:\.\d+)?(?:e[+-]?\d+)?(?![a-z0-9]))|\s*(?P<duration>\d+[smhdw])|\s*(?P<name>[a-zA-Z_:][\w:]*)"
    r'|\s*(?P<text>"(?:[^"\\]|\\.)*")|\s*(?P<sign>=~|!~|!=|==|<=|>=|[-+*/(){}\[\],=<>])'
)


class PromqlError(ValueError):
    """The expression is not of the language."""


@dataclass
class Use:
    """One selector: its series, the labels it matches, its range, and the function around that."""

    series: str
    labels: dict[str, tuple[str, str]] = field(default_factory=dict)
    is_range: bool = False
    function: str | None = None


class Parser:
    """Recursive descent over one expression; `uses` and `grouped` are what it is about."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        position, text = 0, text.rstrip()
        while position < len(text):
            match = TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                raise PromqlError(f"cannot read {text[position : position + 20]!r} in {text!r}")
            self._tokens.append((match.lastgroup, match[match.lastgroup]))
            position = match.end()
        self._at, self._text = 0, text
        self.uses: list[Use] = []
        self.grouped: set[str] = set()
        self._binary(0)
        if self._at < len(self._tokens):
            raise PromqlError(f"{self._peek()[1]!r} is left over in {text!r}")

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._at] if self._at < len(self._tokens) else ("end", "")

    def _take(self, *wanted: str) -> str:
        kind, token = self._peek()
        if wanted and token not in wanted and kind not in wanted:
            raise PromqlError(f"expected {' or '.join(wanted)} but found {token!r} in {self._text!r}")
        self._at += 1
        return token

    def _binary(self, level: int) -> None:
        if level == len(PRECEDENCE):
            return self._unary()
        self._binary(level + 1)
        while self._peek()[1] in PRECEDENCE[level]:
            self._take()
            if self._peek()[1] in ("on", "ignoring"):
                self._take()
                self._label_list()
                if self._peek()[1] in ("group_left", "group_right"):
                    self._take()
            self._binary(level + 1)
        return None

    def _unary(self) -> None:
        while self._peek()[1] == "-":
            self._take()
        kind, token = self._peek()
        if kind == "number":
            self._take()
        elif token == "(":
            self._take()
            self._binary(0)
            self._take(")")
        elif token in AGGREGATIONS:
            self._take()
            if self._peek()[1] in ("by", "without"):
                self._take()
                self.grouped |= self._label_list()
            self._take("(")
            self._binary(0)
            self._take(")")
        elif token in RANGE_OF_COUNTER | RANGE_OF_GAUGE | OF_VECTOR:
            self._function(self._take())
        else:
            self._selector(None)

    def _function(self, name: str) -> None:
        self._take("(")
        if name in OF_VECTOR:
            self._binary(0)
            while self._peek()[1] == ",":
                self._take()
                self._binary(0)
        else:
            self._selector(name)
        self._take(")")

    def _selector(self, function: str | None) -> None:
        use = Use(self._take("name"), function=function)
        if self._peek()[1] == "{":
            self._take()
            while self._peek()[1] != "}":
                label, how, value = self._take("name"), self._take("=", "!=", "=~", "!~"), self._take("text")[1:-1]
                if "~" in how:
                    re.compile(value)
                use.labels[label] = (how, value)
                if self._peek()[1] != "}":
                    self._take(",")
            self._take("}")
        if self._peek()[1] == "[":
            self._take()
            self._take("duration")
            self._take("]")
            use.is_range = True
        if self._peek()[1] == "offset":
            self._take()
            self._take("duration")
        if use.is_range != (function is not None):
            raise PromqlError(f"{use.series} in {self._text!r}: a range belongs into a function, and only there")
        self.uses.append(use)

    def _label_list(self) -> set[str]:
        self._take("(")
        labels = {self._take("name")}
        while self._peek()[1] == ",":
            self._take()
            labels.add(self._take("name"))
        self._take(")")
        return labels
