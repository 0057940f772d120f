"""What judging says of the original itself: KL tells how close an artifact is to it, not whether it
is any good."""

from __future__ import annotations

from collections.abc import Iterable

from phibuild.report.documents import ReportCell


def reference_perplexity(cells: Iterable[ReportCell], model: str) -> float | None:
    """Return the original's perplexity over the text, None if nothing of it was judged. Runtimes
    that always use the long rope factors compare with an original that does too: the ordinary one
    is the better of the two."""
    found = [
        cell.quality.reference_perplexity for cell in cells if cell.model == model and cell.quality
    ]
    return min(found, default=None)


def original_warnings(perplexity: float | None, tokens: int) -> list[str]:
    """Return what is suspicious about an original with a tokenizer of `tokens` tokens.

    Guessing evenly among them has a perplexity of their number, and so has, about, a model with
    random weights; one with damaged weights or another model's tokenizer is worse. Whatever has
    learnt how often tokens occur is far below half of it.
    """
    if perplexity is None or perplexity <= tokens / 2:
        return []
    return [
        f"the original itself has a perplexity of {perplexity:,.0f} over this text, where guessing "
        f"among its {tokens:,} tokens has {tokens:,}: its weights are damaged or untrained, or "
        "its tokenizer is not the one that it was trained with; KL says only how close artifacts "
        "are to it"
    ]
