"""Mathematical values and when two of them are equal (AE-5 to AE-16).

Numbers, collections and relations are read here; what is left goes through the LaTeX parser behind Math-Verify and is
compared symbolically, then numerically. Math-Verify's own grader is not asked: it rounds, forgets brackets, units
and case, and takes the last member of a false chain of equalities for the answer.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from rewards.verifiers.math_text import PLAIN_GROUPED, WRAPPER, RejectedError

MAX_MEMBERS = 64
MAX_POWER_DIGITS = 10_000
TOLERANCE = Fraction(1, 10**6)
NUM_POINTS = 5

LITERAL = re.compile(r"[+-]?\s*(?:\d+\.?\d*|\.\d+)")
FRACTION = re.compile(
    r"([+-]?)\s*(?:(\d+)\s*)?(?:\\frac\s*\{\s*(-?\d+)\s*\}\s*\{\s*(\d+)\s*\}|(?<!\d)(\d+)\s*/\s*(\d+))"
)
REPEATING = re.compile(r"([+-]?)(\d*)\.(\d*)\\(?:overline|bar)\s*\{(\d+)\}")
SCIENTIFIC = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))\s*(?:\\times|\\cdot|\*)\s*10\s*\^\s*(?:\{\s*([+-]?\d+)\s*\}|(\d))")
UNIT = re.compile(
    r"^(?P<value>.*[\d})])\s*(?:\\(?:text|mathrm|textrm|mbox)\s*\{\s*(?P<wrapped>[A-Za-z][A-Za-z ./]*?)\s*\}"
    r"|\s(?P<bare>mm|cm|m|km|inches|inch|feet|ft|miles|kg|g|grams|hours|minutes|seconds|days|dollars|cents|degrees|units?))"
    r"(?:\s*\^\s*\{?\s*(?P<power>\d)\s*\}?)?$"
)
DEGREE = re.compile(r"\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})\s*$|\s*\\degree\s*$")
SYMBOL = re.compile(r"(?:[A-Za-z]|\\(?!in\b|infty\b|pi\b)[a-z]+)(?:_(?:\w|\{[^{}]*\}))?")
RELATION = re.compile(r"\\(?:leq?|geq?|neq?|lt|gt)(?![A-Za-z])|<=|>=|[=<>]")
OPERATORS = {
    r"\leq": "<=",
    r"\le": "<=",
    r"\geq": ">=",
    r"\ge": ">=",
    r"\lt": "<",
    r"\gt": ">",
    r"\ne": "!=",
    r"\neq": "!=",
}
FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
CONJUNCTION = re.compile(r"\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\]),?\s*\b(?:and|or)\b(?![A-Za-z])")
CHOICE = re.compile(r"[\[(]?([A-Za-z])[\])]?\.?")
WORD = re.compile(r"[A-Za-z][A-Za-z' -]{3,}")


@dataclass(frozen=True, slots=True)
class Number:
    value: Fraction
    is_decimal: bool = False
    is_percent: bool = False
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Expression:
    text: str
    unit: str | None = None


@dataclass(frozen=True, slots=True)
class Collection:
    kind: str  # "set", "union", or the two brackets of a tuple or interval
    members: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Assignment:
    symbol: str
    value: Value


@dataclass(frozen=True, slots=True)
class Relation:
    operator: str
    left: str
    right: str


Value = Number | Expression | Collection | Assignment | Relation


class UnreadableError(ValueError):
    """Text that stands for no value, e.g. a chain of equalities that does not hold."""


def is_choice(answer: str, gold: str) -> bool:
    """Whether both are the same option label, bare or in brackets, and nothing else (AE-13)."""
    given, expected = (CHOICE.fullmatch(WRAPPER.sub(r"\1", text).strip()) for text in (answer, gold))
    return bool(given and expected and given[1].upper() == expected[1].upper())


def read(text: str) -> Value:
    """The value a text in its common surface stands for.

    Raises:
        UnreadableError: it stands for none.
        RejectedError: too many members, or a power of ten beyond the guard.
    """
    text = _trim(text)
    if CONJUNCTION.search(text):
        return _collection("set", _split(CONJUNCTION.sub(",", text)))
    if re.search(r"\\cup(?![A-Za-z])", text):
        return Collection("union", tuple(read(part) for part in re.split(r"\\cup(?![A-Za-z])", text)))
    if re.fullmatch(r"\\(?:emptyset|varnothing)|\\\{\s*\\\}", text):
        return Collection("set", ())
    if re.fullmatch(r"\\mathbb\s*\{?\s*R\s*\}?", text):
        return Collection("()", (Expression(r"-\infty"), Expression(r"\infty")))
    if member := re.fullmatch(rf"({SYMBOL.pattern})\s*\\in(?![A-Za-z])\s*(.+)", text):
        return Assignment(_name(member[1]), read(member[2]))
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return _collection("set", _split(text[2:-2]))
    if text[:1] in "([" and text[-1:] in ")]" and _closes_at_end(text):
        members = _split(text[1:-1])
        if len(members) > 1:
            return _collection(text[0] + text[-1], members)
        if text[0] + text[-1] == "()":
            return read(text[1:-1])
    ungrouped = PLAIN_GROUPED.sub(lambda m: m[0].replace(",", ""), text)
    members = _split(ungrouped)
    if len(members) > 1:
        return _collection("set", members)
    return _single(ungrouped)


def _single(text: str) -> Value:
    parts = [part.strip() for part in RELATION.split(text)]
    operators = [OPERATORS.get(m[0]) or m[0] for m in RELATION.finditer(text)]
    if operators and all(parts):
        return _relation(parts, operators)
    if r"\pm" in text:
        plus, minus = (text.replace(r"\pm", sign, 1) for sign in "+-")
        return _collection("set", [plus.removeprefix("+").strip(), minus])
    return _scalar(text)


def _relation(parts: list[str], operators: list[str]) -> Value:
    symbols = [bool(SYMBOL.fullmatch(part)) and part not in ("e", "i") for part in parts]
    if set(operators) == {"="}:
        values = parts[1:] if symbols[0] else parts
        if len(parts) > 2 or (not symbols[0] and all(_is_constant(part) for part in parts)):
            read_values = [read(value) for value in values]
            if not all(equal(read_values[0], other) for other in read_values[1:]):
                raise UnreadableError("a chain of equalities that does not hold")
            return Assignment(_name(parts[0]), read_values[-1]) if symbols[0] else read_values[-1]
        if symbols[0]:
            return Assignment(_name(parts[0]), read(parts[1]))
        if symbols[1]:
            return Assignment(_name(parts[1]), read(parts[0]))
        return Relation("=", parts[0], parts[1])
    if len(parts) == 2 and operators[0] in FLIPPED:
        if symbols[1] and not symbols[0]:
            parts, operators, symbols = parts[::-1], [FLIPPED[operators[0]]], symbols[::-1]
        if symbols[0] and not symbols[1]:
            bound, infinity = read(parts[1]), Expression(r"\infty")
            if operators[0] in (">", ">="):
                return Assignment(
                    _name(parts[0]), Collection("[)" if operators[0] == ">=" else "()", (bound, infinity))
                )
            brackets = "(]" if operators[0] == "<=" else "()"
            return Assignment(_name(parts[0]), Collection(brackets, (Expression(r"-\infty"), bound)))
    if len(parts) == 3 and symbols[1] and (set(operators) <= {"<", "<="} or set(operators) <= {">", ">="}):
        if operators[0] in (">", ">="):
            parts, operators = parts[::-1], [FLIPPED[o] for o in operators[::-1]]
        brackets = ("[" if operators[0] == "<=" else "(") + ("]" if operators[1] == "<=" else ")")
        return Assignment(_name(parts[1]), Collection(brackets, (read(parts[0]), read(parts[2]))))
    return Relation(" ".join(operators), " ".join(parts[:1]), " ".join(parts[1:]))


def _scalar(text: str) -> Number | Expression:
    unit = None
    if text.startswith(("€", "£", "$")):
        unit, text = text[0], text[1:].strip()
    if DEGREE.search(text):
        unit, text = "degree", DEGREE.sub("", text)
    elif (match := UNIT.match(text)) and not (match["wrapped"] or "").startswith(("and", "or")):
        unit, text = (match["wrapped"] or match["bare"]) + (match["power"] or ""), match["value"]
    text = WRAPPER.sub(r"\1", text).strip()
    is_percent = text.endswith("%")
    number = _number(text.removesuffix("%").strip())
    if number is not None:
        return replace(number, is_percent=is_percent, unit=unit)
    if not text:
        raise UnreadableError("an empty value")
    return Expression(text, unit)


def _number(text: str) -> Number | None:
    """An exact rational, never a binary float; None when the text is not one literal (AE-5, AE-7)."""
    while text[:1] == "{" and text[-1:] == "}" and text.count("{") == 1:
        text = text[1:-1].strip()
    if LITERAL.fullmatch(text):
        return Number(Fraction(text.replace(" ", "").rstrip(".")), is_decimal="." in text.rstrip("."))
    if match := FRACTION.fullmatch(text):
        top, bottom = int(match[3] or match[5]), int(match[4] or match[6])
        if bottom == 0 or (match[2] and not 0 <= top < bottom):
            return None
        value = Fraction(int(match[2] or 0)) + Fraction(top, bottom)
        return Number(-value if match[1] == "-" else value)
    if match := REPEATING.fullmatch(text):
        fixed, cycle = match[3], match[4]
        value = Fraction(int(match[2] or 0)) + Fraction(int(fixed or 0), 10 ** len(fixed))
        value += Fraction(int(cycle), 10 ** len(fixed) * (10 ** len(cycle) - 1))
        return Number(-value if match[1] == "-" else value)
    if match := SCIENTIFIC.fullmatch(text):
        exponent = int((match[2] or match[3])[:8])
        if abs(exponent) > MAX_POWER_DIGITS:
            raise RejectedError(f"a power of ten beyond {MAX_POWER_DIGITS}")
        return Number(Fraction(match[1]) * Fraction(10) ** exponent, is_decimal="." in match[1])
    return None


def equal(gold: Value, given: Value) -> bool:
    """Whether two values are the same under the policy. Symmetric, save where one side is bare (AE-15)."""
    if isinstance(gold, Assignment) or isinstance(given, Assignment):
        return _equal_assignments(gold, given)
    if isinstance(gold, Collection) or isinstance(given, Collection):
        return _equal_collections(gold, given)
    if isinstance(gold, Relation) or isinstance(given, Relation):
        return isinstance(gold, Relation) and isinstance(given, Relation) and _equal_relations(gold, given)
    if gold.unit and given.unit and gold.unit != given.unit:
        return False
    if isinstance(gold, Number) and isinstance(given, Number):
        return _equal_numbers(gold, given)
    if any(isinstance(side, Number) and side.is_percent for side in (gold, given)):
        return False
    return _equal_expressions(_text(gold), _text(given), tolerant=_has_decimal(gold) or _has_decimal(given))


def _equal_assignments(gold: Value, given: Value) -> bool:
    if isinstance(gold, Assignment) and isinstance(given, Assignment):
        return gold.symbol == given.symbol and equal(gold.value, given.value)
    one, other = (gold, given) if isinstance(gold, Assignment) else (given, gold)
    assert isinstance(one, Assignment)
    if isinstance(other, Relation):
        return isinstance(one.value, Number | Expression) and _equal_relations(
            Relation("=", one.symbol, _text(one.value)), other
        )
    return equal(one.value, other)


def _equal_collections(gold: Value, given: Value) -> bool:
    first, second = (side if isinstance(side, Collection) else Collection("set", (side,)) for side in (gold, given))
    if first.kind != second.kind:
        return False
    if first.kind in ("set", "union"):
        return all(any(equal(a, b) for b in second.members) for a in first.members) and all(
            any(equal(a, b) for a in first.members) for b in second.members
        )
    return len(first.members) == len(second.members) and all(map(equal, first.members, second.members))


def _equal_numbers(gold: Number, given: Number) -> bool:
    if gold.is_percent != given.is_percent:
        bare, percent = (given, gold) if gold.is_percent else (gold, given)
        readings = (percent.value, percent.value / 100)
        return any(_close(bare.value, value, gold.is_decimal or given.is_decimal) for value in readings)
    return _close(gold.value, given.value, gold.is_decimal or given.is_decimal)


def _close(gold: Fraction, given: Fraction, tolerant: bool) -> bool:
    if gold == given or not tolerant:
        return gold == given
    return abs(gold - given) <= TOLERANCE * min(1, abs(gold), abs(given))  # the smaller side, so that it is symmetric


def _equal_relations(gold: Relation, given: Relation) -> bool:
    if gold == given:
        return True
    if gold.operator != "=" or given.operator != "=":
        return False
    import sympy

    first, second = (_symbolic(side.left) - _symbolic(side.right) for side in (gold, given))
    if sympy.simplify(first) == 0 or sympy.simplify(second) == 0:
        return False  # an identity equals nothing but itself
    ratio = sympy.simplify(first / second)
    return not ratio.free_symbols and ratio.is_finite is not False and ratio != 0


def _equal_expressions(gold: str, given: str, *, tolerant: bool) -> bool:
    if "".join(gold.split()) == "".join(given.split()):
        return True
    if WORD.fullmatch(gold) and WORD.fullmatch(given) and "\\" not in gold:
        return gold.casefold() == given.casefold()
    first, second = _symbolic(gold), _symbolic(given)
    return _same(first, second, seed=gold, tolerant=tolerant)


def _same(first: Any, second: Any, *, seed: str, tolerant: bool) -> bool:
    import sympy

    if isinstance(first, sympy.MatrixBase) or isinstance(second, sympy.MatrixBase):
        if not (isinstance(first, sympy.MatrixBase) and isinstance(second, sympy.MatrixBase)):
            return False
        return first.shape == second.shape and all(
            _same(a, b, seed=seed, tolerant=tolerant) for a, b in zip(first.flat(), second.flat(), strict=True)
        )
    undefined = (sympy.nan, sympy.zoo)
    if any(side.has(*undefined) for side in (first, second)):
        return False  # equals nothing, itself included (AE-14)
    if first == second:
        return True
    if sympy.oo in (first, second) or -sympy.oo in (first, second) or first.free_symbols != second.free_symbols:
        is_finite = first.is_finite is not False and second.is_finite is not False
        return is_finite and sympy.simplify(first - second) == 0
    return _agree_at_points(first, second, seed=seed, tolerant=tolerant)


def _agree_at_points(first: Any, second: Any, *, seed: str, tolerant: bool) -> bool:
    """Agreement to 40 digits at pseudo-random points, some of them negative, seeded from the gold (AE-11)."""
    import sympy

    rng = random.Random(hashlib.sha256(seed.encode()).digest())
    symbols, agreed = sorted(first.free_symbols, key=str), 0
    for _ in range(4 * NUM_POINTS if symbols else 1):
        point = {symbol: sympy.Rational(rng.randint(-3000, 3000) * 2 + 1, 1009) for symbol in symbols}
        one, other = (sympy.N(side.subs(point), 60) for side in (first, second))
        if not (one.is_number and other.is_number and one.is_finite and other.is_finite):
            continue
        limit = TOLERANCE if tolerant else sympy.Rational(1, 10**40)
        scale = min(1, abs(one), abs(other)) if tolerant else max(abs(one), abs(other))
        if abs(one - other) > limit * scale:
            return sympy.simplify(first - second) == 0  # near zero, digits cancel: only a proof counts there
        agreed += 1
    return agreed >= (NUM_POINTS if symbols else 1)


def _symbolic(text: str) -> Any:
    """A sympy object with the constants e and i in place; it must never be printed: that may evaluate huge powers."""
    import sympy
    from latex2sympy2_extended import latex2sympy
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig

    exact = re.sub(r"\d*\.\d+", lambda m: _as_fraction(m[0]), text)
    try:
        parsed = latex2sympy(exact, conversion_config=ConversionConfig(lowercase_symbols=False))
    except RecursionError as error:
        raise RejectedError("nested too deep for the parser") from error
    except Exception as error:  # attributed: the parser raises whatever its grammar runs into
        raise UnreadableError(f"no mathematical expression ({type(error).__name__})") from error
    if not isinstance(parsed, sympy.Expr | sympy.MatrixBase):
        raise UnreadableError(f"a {type(parsed).__name__}, not an expression")
    _refuse_huge_powers(parsed)
    constants = {s: {"i": sympy.I, "e": sympy.E}[str(s)] for s in parsed.free_symbols if str(s) in ("i", "e")}
    return parsed.subs(constants).doit(deep=True)


def _refuse_huge_powers(node: Any) -> None:
    import sympy

    for power in sympy.preorder_traversal(node):
        if isinstance(power, sympy.Pow) and not power.free_symbols:
            base, exponent = (_estimate(argument) for argument in power.args)
            if exponent * max(math.log10(max(base, 1 / base if base else 1)), 0) > MAX_POWER_DIGITS:
                raise RejectedError(f"a power with more than {MAX_POWER_DIGITS} digits")


def _estimate(node: Any) -> float:
    """Size of a constant without working it out; infinite when it would not fit a float."""
    try:
        if node.is_Integer or node.is_Rational:
            return abs(float(node))
        sizes = [_estimate(argument) for argument in node.args]
        if node.is_Pow:
            return sizes[0] ** sizes[1]
        if node.is_Mul:
            return math.prod(sizes)
        return sum(sizes) if sizes else 4.0
    except (OverflowError, ZeroDivisionError):
        return math.inf


def _as_fraction(literal: str) -> str:
    value = Fraction(literal)
    return rf"\frac{{{value.numerator}}}{{{value.denominator}}}"


def _has_decimal(value: Number | Expression) -> bool:
    return value.is_decimal if isinstance(value, Number) else bool(re.search(r"\d*\.\d", value.text))


def _text(value: Number | Expression) -> str:
    if isinstance(value, Expression):
        return value.text
    return rf"\frac{{{value.value.numerator}}}{{{value.value.denominator}}}"


def _is_constant(text: str) -> bool:
    return not re.search(r"[A-Za-z]", re.sub(r"\\(?:frac|sqrt|pi|cdot|times|div|infty)(?![A-Za-z])", "", text))


def _name(symbol: str) -> str:
    return re.sub(r"[{}\s]", "", symbol)


def _trim(text: str) -> str:
    text = text.strip()
    return text[:-1].rstrip() if text.endswith((".", ",", ";")) else text


def _collection(kind: str, members: list[str]) -> Collection:
    if len(members) > MAX_MEMBERS:
        raise RejectedError(f"{len(members)} members; the limit is {MAX_MEMBERS}")
    values = [read(member) for member in members if member.strip()]
    flat: list[Value] = []
    for value in values:  # "1 and \pm 2" is one set
        if kind == "set" and isinstance(value, Collection) and value.kind == "set":
            flat.extend(value.members)
        else:
            flat.append(value)
    return Collection(kind, tuple(flat))


def _split(text: str) -> list[str]:
    """Members at the commas outside all brackets."""
    members, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "{([") - (character in "})]")
        if character == "," and depth == 0:
            members.append(text[start:position])
            start = position + 1
    return [*members, text[start:]]


def _closes_at_end(text: str) -> bool:
    depth = 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return position == len(text) - 1
    return False
