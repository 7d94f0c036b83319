"""A comparison in words: the verdict, the table, drift.json."""

import json
from dataclasses import asdict
from pathlib import Path

from deepcv.data.drift import MIN_KS, Comparison, Finding
from deepcv.files import write_text
from deepcv.monitoring.look import Look

_SHOWN_FILES = 5


def verdict(comparison: Comparison) -> str:
    """One plain sentence: what has drifted, or that nothing has, and whether anything could have been seen."""
    if comparison.drifted:
        return "drift: " + ", ".join(f"{f.name} ({_change(f)})" for f in comparison.drifted)
    if comparison.detectable > 1:
        return "no drift found, and none could be: too few images"
    if comparison.detectable > MIN_KS:
        return f"no drift found (so few images show KS distances from {comparison.detectable:.2f} on)"
    return "no drift found"


def table(comparison: Comparison) -> str:
    """All findings, one a line, and what was not tested."""
    rows = [("", "reference", "new", "effect", "counts from", "p (Holm)", "")]
    for f in comparison.findings:
        effect, threshold = f"{f.measure} {f.effect:.3f}", f"{f.threshold:g}"
        rows.append((f.name, f.before, f.after, effect, threshold, f"{f.p_holm:.2g}", "drift" if f.drifted else ""))
    rows += [(name, f"not tested: {reason}", "", "", "", "", "") for name, reason in comparison.skipped.items()]
    tested = rows[: len(comparison.findings) + 1]
    widths = [max(len(row[column]) for row in (tested if column else rows)) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def describe(name: str, look: Look) -> str:
    """What was looked at on one side."""
    text = f"{name} {look.path}: {look.images} images"
    if look.drawn < look.images:
        text += f", {look.drawn} of them drawn"
    if look.unreadable:
        shown = [f"\n  {file}: {reason}" for file, reason in sorted(look.unreadable.items())[:_SHOWN_FILES]]
        more = len(look.unreadable) - len(shown)
        text += f", {len(look.unreadable)} unreadable:" + "".join(shown) + (f"\n  … and {more} more" if more else "")
    if look.note:
        text += f"\n  read as loose images, because it is no dataset to train on: {look.note}"
    return text


def write(
    path: Path, comparison: Comparison, reference: Look, new: Look, *, model: str, sample: int, seed: int
) -> None:
    """Write drift.json: everything that the table says, and what is needed to repeat it."""
    content = {
        "verdict": verdict(comparison),
        "drift": bool(comparison.drifted),
        "alpha": comparison.alpha,
        "sample": sample,
        "seed": seed,
        "model": model,
        "reference": _summary(reference),
        "new": _summary(new),
        "findings": [asdict(finding) for finding in comparison.findings],
        "skipped": dict(comparison.skipped),
        "detectable_ks": comparison.detectable,
    }
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _change(finding: Finding) -> str:
    change = f"{finding.before} -> {finding.after}, " if finding.before else ""
    return f"{change}{finding.measure} {finding.effect:.2f}"


def _summary(look: Look) -> dict[str, object]:
    return {
        "path": str(look.path),
        "images": look.images,
        "measured": look.side.images,
        "unreadable": dict(sorted(look.unreadable.items())),
        "note": look.note,
        "classes": dict(sorted(look.side.classes.items())),
    }
