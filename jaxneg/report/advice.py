"""What to choose among a study's methods, and what speaks against it, in plain words."""

import math
from collections.abc import Iterator, Sequence

from jaxneg.evaluation import rows as results
from jaxneg.report import analysis, statistics
from jaxneg.report import read as runs
from jaxneg.report.analysis import Line
from jaxneg.report.text import counted, listed, p_text, rounded, with_interval

WEAK_POPULARITY = 0.5  # popularity sampling below this share of the best NDCG@10 is a warning sign
UNSTABLE = 0.2  # standard deviation over mean of NDCG@10
MANY_PAIRS = 10  # of more equal pairs, the recommendation names those of the most accurate method only
STILL_RISING = 0.5  # share of the seeds that are best at the last evaluation


def recommend(study: runs.Study, lines: Sequence[Line], pairs: Sequence[analysis.Pair]) -> list[str]:
    """What to choose, each statement with its number; nothing where every seed failed."""
    ranked = sorted((line for line in lines if math.isfinite(line.mean("ndcg@10"))), key=lambda x: -x.mean("ndcg@10"))
    return [*_choices(study, lines, ranked, pairs), *_warnings(study, lines, ranked)] if ranked else []


def _choices(study: runs.Study, lines, ranked, pairs) -> Iterator[str]:
    best = ranked[0]
    yield (
        f"Most accurate: `{best.label}`, NDCG@10 {with_interval(best, 'ndcg@10')}, "
        f"Balance {rounded('balance', best.mean('balance'))}."
    )
    front, share = analysis.on_front(lines), analysis.front_share(lines)
    chosen = [line for line in ranked if front[line.label]]
    if chosen:
        words = [
            f"`{line.label}` (NDCG@10 {line.mean('ndcg@10'):.4f}, Balance {line.mean('balance'):.3f}"
            + (f", {share[line.label]:.0%} of the resamples)" if share else ")")
            for line in chosen
        ]
        yield f"Pareto-best in NDCG@10 and Balance: {listed(words)}."
    tested = [pair for pair in pairs if math.isfinite(pair.welch_holm)]
    equal = [pair for pair in tested if not pair.significant]
    if tested:
        beaten = sum(pair.significant for pair in pairs if pair.a == best.label)
        shown = equal if len(equal) <= MANY_PAIRS else [pair for pair in equal if pair.a == best.label]
        named = [f"`{pair.a}` and `{pair.b}` (p {p_text(pair.welch_holm)})" for pair in shown]
        yield (
            f"Not significant: {len(equal)} of {len(tested)} differences in NDCG@10 (Welch, Holm)"
            + (f", {'among them ' * (shown != equal)}{listed(named)}. " if named else ". ")
            + f"`{best.label}` is significantly better than {beaten} of {len(lines) - 1} methods."
        )
    if len(chosen) > 1:
        fair = max(chosen, key=lambda line: line.mean("balance"))
        moves = [
            f"{cohort} {best.mean(f'{cohort}_ndcg@10'):.4f} to {fair.mean(f'{cohort}_ndcg@10'):.4f}"
            for cohort in results.COHORTS
        ]
        loss = 1 - fair.mean("ndcg@10") / best.mean("ndcg@10")
        yield (
            f"The trade: from `{best.label}` to `{fair.label}`, the most balanced on the front, NDCG@10 falls by "
            f"{loss:.0%} and Balance goes from {rounded('balance', best.mean('balance'))} to "
            f"{rounded('balance', fair.mean('balance'))}; NDCG@10 by cohort: {listed(moves)}."
        )
    elif chosen:
        values = [f"{cohort} {best.mean(f'{cohort}_ndcg@10'):.4f}" for cohort in results.COHORTS]
        yield f"No trade to make: `{best.label}` leads in both; its NDCG@10 is {listed(values)}."


def _warnings(study: runs.Study, lines, ranked) -> Iterator[str]:
    """The warning signs that are seen, or the sentence that there is none."""
    found = []
    if not study.baselines.empty:
        rival = study.baselines.loc[study.baselines["ndcg@10"].idxmax()]
        below = [
            f"`{line.label}` ({line.mean('ndcg@10'):.4f})"
            for line in ranked
            if line.mean("ndcg@10") <= rival["ndcg@10"]
        ]
        if below:
            found.append(f"Not better than {rival['method']} (NDCG@10 {rival['ndcg@10']:.4f}): {listed(below)}.")
    biased = [line for line in ranked if line.mean("balance") < results.LOW_BALANCE]
    if biased:
        words = [
            f"`{line.label}` ({line.mean('balance'):.3f}; head {line.mean('head_ndcg@10'):.4f}, "
            f"tail {line.mean('tail_ndcg@10'):.4f})"
            for line in biased
        ]
        found.append(f"Strong head bias, Balance under {results.LOW_BALANCE:g}: {listed(words)}.")
    weak = [
        line
        for line in ranked
        if line.variant.method == "popularity" and line.mean("ndcg@10") < WEAK_POPULARITY * ranked[0].mean("ndcg@10")
    ]
    found += [
        f"Very low accuracy with popularity sampling: `{line.label}` has NDCG@10 {line.mean('ndcg@10'):.4f}, "
        f"{line.mean('ndcg@10') / ranked[0].mean('ndcg@10'):.0%} of the best."
        for line in weak
    ]
    unstable = []
    for line in lines:
        failed = len(line.variant.rows) - len(line.variant.ok)
        spread = line.summaries["ndcg@10"].std / line.mean("ndcg@10") if line.mean("ndcg@10") else math.nan
        signs = [f"{failed} of {len(line.variant.rows)} seeds failed"] * bool(failed)
        signs += [f"{len(line.collapsed)} of {len(line.variant.ok)} seeds collapsed"] * bool(line.collapsed)
        signs += [f"standard deviation {spread:.0%} of the mean NDCG@10"] * bool(spread > UNSTABLE)
        if signs:
            unstable.append(f"`{line.label}` ({'; '.join(signs)})")
    if unstable:
        found.append(f"Collapsed or unstable training: {listed(unstable)}.")
    rising = [
        f"`{label}` ({number} of {of})"
        for label, (number, of) in analysis.best_at_the_end(lines).items()
        if number > STILL_RISING * of
    ]
    if rising:
        found.append(
            f"Not converged, most seeds best at their last evaluation: {listed(rising)}. More epochs may "
            "change the order."
        )
    few = min(line.summaries["ndcg@10"].n for line in lines)
    if few < statistics.MIN_SEEDS:
        found.append(f"Few repeats: {counted(few, 'seed')} of a method; what is above is an indication, not a finding.")
    yield from [f"Warning: {words[0].lower()}{words[1:]}" for words in found] or ["No warning sign is seen."]
