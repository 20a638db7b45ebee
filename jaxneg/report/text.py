"""How a report writes numbers, intervals and lists."""

import math
from collections.abc import Sequence

from jaxneg.report import statistics
from jaxneg.report.analysis import Line

DECIMALS = {"balance": 3, "coverage@10": 3, "arp@10": 1, "popular_share@10": 3, "train_seconds": 1, "eval_seconds": 1}


def best_interval(line: Line, name: str) -> tuple[statistics.Interval, str]:
    """The widest kind of interval that is known, and its name."""
    summary = line.summaries[name]
    for interval, kind in (
        (summary.over_both, "seeds and test users"),
        (summary.over_seeds, "seeds"),
        (summary.over_users, "test users"),
    ):
        if math.isfinite(interval.low):
            return interval, kind
    return statistics.UNKNOWN, ""


def with_interval(line: Line, name: str) -> str:
    """The mean, with its widest interval."""
    interval, kind = best_interval(line, name)
    return rounded(name, line.mean(name)) + (f" (95% over {kind}: {interval_text(name, interval)})" if kind else "")


def rounded(name: str, value: float) -> str:
    """A metric's value with its decimals; nothing where it is not known."""
    return fixed(value, DECIMALS.get(name, 4))


def fixed(value: float, decimals: int) -> str:
    """A number with these decimals; nothing where it is not finite."""
    return f"{value:.{decimals}f}" if math.isfinite(value) else ""


def with_spread(name: str, mean: float, std: float) -> str:
    """mean ± standard deviation."""
    return rounded(name, mean) + (f" ± {rounded(name, std)}" if math.isfinite(std) else "")


def mean_and_std(line: Line, name: str, bold: bool = False) -> str:
    """The same of a line; nothing where it lacks the metric."""
    if name not in line.summaries:
        return ""
    summary = line.summaries[name]
    text = with_spread(name, summary.mean, summary.std)
    return f"**{text}**" if bold and text else text


def interval_text(name: str, interval: statistics.Interval) -> str:
    """low to high."""
    return f"{rounded(name, interval.low)} to {rounded(name, interval.high)}" if math.isfinite(interval.low) else ""


def p_text(value: float) -> str:
    """A p value."""
    if math.isnan(value):
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def seed_count(line: Line) -> str:
    """How many seeds count, and how many failed."""
    failed = len(line.variant.rows) - len(line.variant.ok)
    return str(len(line.variant.ok)) + (f" (+{failed} failed)" if failed else "")


def counted(count: int, word: str) -> str:
    """ "1 seed", "20 seeds"."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def duration(hours: float) -> str:
    """Hours, or minutes of less than one."""
    return f"{hours:.1f} h" if hours >= 1 else f"{hours * 60:.1f} min"


def sum_text(numbers: Sequence[int]) -> str:
    """a = b + c."""
    return f"{numbers[0]:,} = " + " + ".join(f"{number:,}" for number in numbers[1:])


def listed(words: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
