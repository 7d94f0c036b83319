"""Figures as tables and pages print them; prefixes are powers of 1000."""

from collections.abc import Iterable

from deepcv.profiling.observe import Shape


def short(count: float, unit: str = "") -> str:
    """Three digits: 1.81 G, 274 k, 27."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:
            return f"{_digits(count / size)} {prefix}{unit}"
    return f"{count:.0f}{' ' if unit else ''}{unit}"


def milliseconds(seconds: float) -> str:
    """Three digits of milliseconds."""
    return f"{_digits(seconds * 1e3)} ms"


def rate(per_s: float) -> str:
    """4,834 or 7.13: whole numbers from 100 on."""
    return f"{per_s:,.0f}" if per_s >= 100 else _digits(per_s)


def shape_of(shape: Shape) -> str:
    """3×224×224."""
    return "×".join(map(str, shape)) or "scalar"


def lines_of(words: Iterable[str], letters: int, joint: str = ", ") -> list[str]:
    """The words joined, as many to a line as fit."""
    lines: list[str] = []
    for word in words:
        if lines and len(lines[-1] + joint + word) <= letters:
            lines[-1] += joint + word
        else:
            lines.append(word)
    return lines


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}" if value < 99.95 else f"{value:.0f}"
