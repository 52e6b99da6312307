"""Finds the answer inside a mathematical text and brings its surface into one form (AE-1 to AE-4)."""

from __future__ import annotations

import re
import unicodedata

MAX_LENGTH = 4096
"""Characters of a candidate."""
MAX_DEPTH = 64
"""Nested brackets."""
MAX_DIGITS = 4000
MAX_ARGUMENT = 10_000
"""Largest argument of a factorial, a binomial coefficient, or bound of a sum or product."""
MAX_TOWER = 3

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
LAYOUT = re.compile(
    r"\\(?:left|right|displaystyle|textstyle|[bB]ig[lr]?|limits|nolimits)(?![A-Za-z])|\\[!;:,]|\\quad|\\ |~|\$"
)
WRAPPER = re.compile(r"\\(?:text|mathrm|textrm|mbox|textbf|mathbf|textit|operatorname)\s*\{([^{}]*)\}")
GROUPED = re.compile(
    r"(?<![\d.])[1-9]\d{0,2}(?:(?:\{,\}|\\,|\\!|,\\!|\N{THIN SPACE}|\N{NARROW NO-BREAK SPACE})\d{3})+(?!\d)"
)
PLAIN_GROUPED = re.compile(r"(?<![\d.])[1-9]\d{0,2}(?:,\d{3})+(?!\d)")
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
SUPERSCRIPT = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+")
RADICAL = re.compile(r"√\s*(\d+|[A-Za-z]|\{[^{}]*\}|\([^()]*\))")
SHORT_FRACTION = re.compile(r"\\frac\s*(\d)\s*(\d)(?!\d)")
WORDS = {"−": "-", "–": "-", "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "≤": r"\le ", "≥": r"\ge ",
         "≠": r"\ne ", "°": r"^\circ ", "∪": r"\cup ", "∅": r"\emptyset ", "±": r"\pm "}  # fmt: skip


class RejectedError(ValueError):
    """A candidate beyond a guard: it is not parsed."""


def segment(answer: str, think_tag: str | None) -> str | None:
    """The text an answer may stand in: what follows the last thinking block; None when one was never closed (AE-1)."""
    if think_tag is None:
        return answer
    opening, closing = f"<{think_tag}>", f"</{think_tag}>"
    end, start = answer.rfind(closing), answer.rfind(opening)
    if start > end:
        return None
    return answer[end + len(closing) :] if end >= 0 else answer


def last_box(text: str) -> str | None:
    """Content of the last box; None when there is none, or the last one is never closed. One scan (AE-2)."""
    content, position = None, 0
    while match := BOX.search(text, position):
        end = closing_brace(text, match.end())
        if end is None:
            return None
        content, position = text[match.end() : end], end + 1
    if content is None:
        return None
    while (inner := BOX.match(content.strip())) and closing_brace(content.strip(), inner.end()) == len(
        content.strip()
    ) - 1:
        content = content.strip()[inner.end() : -1]
    return content


def closing_brace(text: str, start: int) -> int | None:
    """Position of the brace that closes the one opened just before `start`."""
    depth, position = 1, start
    while position < len(text):
        character = text[position]
        if character == "\\":
            position += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return position
        position += 1
    return None


def is_blank(text: str) -> bool:
    """Whether nothing is left without layout and invisible characters."""
    visible = "".join(c for c in LAYOUT.sub("", text) if unicodedata.category(c) not in ("Cf", "Cc", "Zs"))
    return not WRAPPER.sub(r"\1", visible).strip(" {}")


def check_guards(text: str) -> None:
    """Refuses what could cost more than it is worth, in time linear in the text (AE-3).

    Raises:
        RejectedError: names the guard and the limit.
    """
    if len(text) > MAX_LENGTH:
        raise RejectedError(f"{len(text)} characters; the limit is {MAX_LENGTH}")
    if any(unicodedata.category(c) in ("Cf", "Mn", "Me", "Co", "Cs") for c in text):
        raise RejectedError("invisible, combining or bidirectional characters")
    depth = deepest = 0
    for character in text:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise RejectedError(f"brackets nested {deepest} deep; the limit is {MAX_DEPTH}")
    longest = max((len(run) for run in re.findall(r"\d+", text)), default=0)
    if longest > MAX_DIGITS:
        raise RejectedError(f"a number with {longest} digits; the limit is {MAX_DIGITS}")
    if _tower(text) > MAX_TOWER:
        raise RejectedError(f"a tower of powers higher than {MAX_TOWER}")
    if re.search(r"[)}\]!]\s*!", text):
        raise RejectedError("the factorial of an expression")
    if any(int(n[:6]) > MAX_ARGUMENT for n in re.findall(r"(\d+)\s*!", text)):
        raise RejectedError(f"a factorial beyond {MAX_ARGUMENT}!")
    if re.search(r"\\(?:sum|prod|d?t?binom)(?![A-Za-z])", text) and any(
        int(n[:6]) > MAX_ARGUMENT for n in re.findall(r"\d+", text)
    ):
        raise RejectedError(f"a sum, product or binomial coefficient with a number beyond {MAX_ARGUMENT}")
    if re.search(r"\\i*int(?![A-Za-z])", text):
        raise RejectedError("an integral left to be worked out")


def _tower(text: str) -> int:
    """Height of the highest tower of powers: exponents inside exponents."""
    heights, highest, armed, current = [0], 0, False, 0
    for character in text:
        if character == "^":
            armed, current = True, heights[-1] + 1
            highest = max(highest, current)
        elif character in "{(":
            heights.append(current if armed else heights[-1])
            armed = False
        elif character in "})" and len(heights) > 1:
            heights.pop()
        elif not character.isspace():
            armed = False
    return highest


def surface(text: str) -> str:
    """One spelling for what looks alike (AE-4, AE-7). Never NFKC: it would turn 2 and a raised 2 into 22."""
    for character, word in WORDS.items():
        text = text.replace(character, word)
    text = "".join(_vulgar(c) for c in text)
    text = SUPERSCRIPT.sub(lambda m: "^{" + m[0].translate(SUPERSCRIPTS) + "}", text)
    text = RADICAL.sub(lambda m: r"\sqrt{" + m[1].strip("{}()") + "}", text)
    text = GROUPED.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    text = text.replace(r"\$", "$").replace(r"\%", "%")
    text = re.sub(r"\\[dtc]frac(?![A-Za-z])", r"\\frac", text)
    text = SHORT_FRACTION.sub(r"\\frac{\1}{\2}", text)
    text = LAYOUT.sub(" ", text)
    return " ".join(text.split()).removesuffix(".").strip()


def _vulgar(character: str) -> str:
    if unicodedata.category(character) != "No" or "FRACTION" not in unicodedata.name(character, ""):
        return character
    top, _, bottom = unicodedata.normalize("NFKC", character).partition("\N{FRACTION SLASH}")
    return rf"\frac{{{top}}}{{{bottom}}}" if bottom else character
