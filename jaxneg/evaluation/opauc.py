"""Why hard negatives help at the top: how closely top-K metrics follow OPAUC(beta), over random rankings.

    python -m jaxneg.opauc --out runs/opauc

OPAUC(beta) is the area under the ROC curve for false positive rates in [0, beta], so it looks at that share of the
negatives, the highest. BPR on the M hardest of N uniform negatives, DNS(M, N), optimises it at a beta of about M / N
(Shi et al., WWW 2023, arXiv 2302.03472, whose simulation this is): the smaller the K of a metric, the smaller the beta
that it follows best, and the harder the negatives should be.
"""

import argparse
import functools
import pathlib
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from jaxtyping import Array, Float, UInt32
from matplotlib.figure import Figure

from jaxneg import files
from jaxneg.errors import InputError
from jaxneg.hashing import multiply_wide

CHUNK = 500  # rankings at a time: what is carried from rank to rank stays in a core's cache
FIRST_DEPTHS = 80  # numbers of negatives of which every one has its beta


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4, 5))
def sums_of_products(
    key: jax.Array,
    num_chunks: int,
    num_positives: int,
    num_negatives: int,
    ks: tuple[int, ...],
    depths: tuple[int, ...],
) -> Float[Array, "chunks S 1+S"]:
    """Sums over the CHUNK rankings of each chunk of all values, and of their products in pairs, [chunks, S, 1 + S].

    The S values of a ranking are Recall@K for each K, DCG@K for each K, and for each of `depths` the area under the ROC
    curve above that many negatives: each less its mean over all rankings, so that float32 is enough.
    """
    length = num_positives + num_negatives
    gains = gains_by_rank(length, ks)
    share = num_positives / length
    means = np.concatenate([share * gains.sum(axis=0), [mean_area(d, num_positives, num_negatives) for d in depths]])
    row, last = jnp.arange(CHUNK), np.asarray(depths) - 1

    def chunk(key):
        def place(state, step):
            """The next item of each ranking: a positive with the share that positives have of what is left."""
            num_above, of_metrics, above_negative = state
            rank, words, gain = step
            left = jnp.uint32(length) - rank.astype(jnp.uint32)
            is_positive = multiply_wide(words, left)[0].astype(jnp.int32) < num_positives - num_above
            negative = jnp.where(is_positive, num_negatives, rank - num_above)  # out of bounds: dropped
            above_negative = above_negative.at[row, negative].set(num_above.astype(jnp.float32), mode="drop")
            of_metrics = of_metrics + jnp.where(is_positive[:, None], gain[None], 0.0)
            return (num_above + is_positive, of_metrics, above_negative), None

        words: UInt32[Array, "length chunk"] = jax.random.bits(key, (length * CHUNK,), jnp.uint32).reshape(
            length, CHUNK
        )
        start = (jnp.zeros(CHUNK, jnp.int32), jnp.zeros((CHUNK, gains.shape[1])), jnp.zeros((CHUNK, num_negatives)))
        steps = (jnp.arange(length, dtype=jnp.int32), words, jnp.asarray(gains, jnp.float32))
        (_, of_metrics, above_negative), _ = jax.lax.scan(place, start, steps)
        area = jnp.cumsum(above_negative, axis=1)[:, last]
        values = jnp.concatenate([of_metrics, area], axis=1) - jnp.asarray(means, jnp.float32)[None]
        values = values / jnp.asarray(scales(means), jnp.float32)[None]
        products = jnp.einsum("rs,rt->st", values, values, precision=jax.lax.Precision.HIGHEST)
        return jnp.concatenate([jnp.sum(values, axis=0)[:, None], products], axis=1)

    return jax.lax.map(chunk, jax.random.split(key, num_chunks))


def gains_by_rank(length: int, ks: Sequence[int]) -> np.ndarray:
    """What a positive at each rank adds to Recall@K (in positives) and to DCG@K, [length, 2 * len(ks)]."""
    rank = np.arange(length)[:, None]
    inside = rank < np.asarray(ks)[None]
    return np.concatenate([inside.astype(float), inside / np.log2(rank + 2)], axis=1)


def mean_area(depth: int, num_positives: int, num_negatives: int) -> float:
    """The mean over all rankings of the sum, over the `depth` highest negatives, of the positives above each."""
    return num_positives * depth * (depth + 1) / 2 / (num_negatives + 1)


def scales(means: np.ndarray) -> np.ndarray:
    """What values are divided by so that no square is huge: a correlation has no scale."""
    return np.maximum(means, 1.0)


def depths_for(num_negatives: int) -> tuple[int, ...]:
    """Numbers of negatives from 1 to all of them, every one of the first, then ever wider apart."""
    spaced = np.rint(np.geomspace(1, num_negatives, 100)).astype(int)
    depths = {*range(1, min(FIRST_DEPTHS, num_negatives) + 1), *spaced}
    return tuple(sorted(int(depth) for depth in depths))


def correlations(
    num_rankings: int = 100_000,
    num_positives: int = 200,
    num_negatives: int = 800,
    ks: Sequence[int] = (5, 10, 20, 50, 100, 200),
    seed: int = 0,
) -> pd.DataFrame:
    """Pearson's correlation of each metric at each K with OPAUC(beta): columns metric, k, beta, correlation.

    Over at least `num_rankings` uniform random rankings. beta = 1 is AUC. Raises InputError for numbers out of range.
    """
    length = num_positives + num_negatives
    for name, value, least in [
        ("rankings", num_rankings, 2),
        ("positives", num_positives, 1),
        ("negatives", num_negatives, 1),
    ]:
        if value < least:
            raise InputError(f"--{name} is {value}; allowed: {least} or more")
    if not ks or not all(1 <= k < length for k in ks):
        raise InputError(f"--ks is {' '.join(map(str, ks))}; allowed: 1 to {length - 1}, below the ranking's length")
    depths = depths_for(num_negatives)
    num_chunks = -(-num_rankings // CHUNK)
    sums = sums_of_products(jax.random.key(seed), num_chunks, num_positives, num_negatives, tuple(ks), depths)
    sums = np.asarray(sums, np.float64).sum(axis=0) / (num_chunks * CHUNK)
    covariance = sums[:, 1:] - np.outer(sums[:, 0], sums[:, 0])
    deviation = np.sqrt(np.diag(covariance))
    num_metrics = 2 * len(ks)
    correlation = (covariance / np.outer(deviation, deviation))[:num_metrics, num_metrics:]
    # With one number of positives for all rankings, Precision@K is Recall@K in another unit.
    rows = [
        {"metric": metric, "k": k, "beta": depth / num_negatives, "correlation": value}
        for metric, of_metric in [
            ("Recall", correlation[: len(ks)]),
            ("Precision", correlation[: len(ks)]),
            ("NDCG", correlation[len(ks) :]),
        ]
        for k, of_k in zip(ks, of_metric, strict=True)
        for depth, value in zip(depths, of_k, strict=True)
    ]
    return pd.DataFrame(rows)


def peaks(frame: pd.DataFrame) -> pd.DataFrame:
    """For each metric and K the beta of the highest correlation, that correlation, and AUC's."""
    best = frame.loc[frame.groupby(["metric", "k"], sort=False)["correlation"].idxmax()].reset_index(drop=True)
    auc = frame[frame["beta"] == 1].set_index(["metric", "k"])["correlation"]
    return best.assign(auc=[auc[metric, k] for metric, k in zip(best["metric"], best["k"], strict=True)])


def table(frame: pd.DataFrame) -> str:
    """The peaks in lines of text."""
    lines = [f"{'metric':<15}{'highest correlation':>20}{'at beta':>10}{'with AUC':>10}"]
    for row in peaks(frame).itertuples():
        lines.append(f"{f'{row.metric}@{row.k}':<15}{row.correlation:>20.3f}{row.beta:>10.4f}{row.auc:>10.3f}")
    return "\n".join(lines)


def draw(frame: pd.DataFrame, path: pathlib.Path) -> None:
    """The curves over beta, with their peaks, as a PNG that appears whole."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    at_peak = peaks(frame)
    titles = {"Recall": "Recall@K and Precision@K", "NDCG": "NDCG@K"}
    for axes, (metric, title) in zip(figure.subplots(1, 2, sharey=True), titles.items(), strict=True):
        for index, (k, curve) in enumerate(frame[frame["metric"] == metric].groupby("k")):
            peak = at_peak[(at_peak["metric"] == metric) & (at_peak["k"] == k)].iloc[0]
            axes.plot(curve["beta"], curve["correlation"], color=f"C{index}", label=f"K = {k}")
            axes.plot(peak["beta"], peak["correlation"], "o", color=f"C{index}")
        axes.set(xscale="log", xlabel="beta (1: AUC)", title=title, ylim=(0, 1))
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("correlation with OPAUC(beta)")
    figure.legend(*figure.axes[1].get_legend_handles_labels(), loc="outside right center")
    with files.whole(path) as temporary:
        figure.savefig(temporary, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxneg.opauc", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {"rankings": 100_000, "positives": 200, "negatives": 800, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--ks", type=int, nargs="+", default=[5, 10, 20, 50, 100, 200], metavar="K")
    parser.add_argument("--out", metavar="DIR", help="folder for opauc.csv and opauc.png; without it only the table")
    given = parser.parse_args(arguments)
    try:
        frame = correlations(given.rankings, given.positives, given.negatives, given.ks, given.seed)
        print(table(frame))
        if given.out:
            with files.claimed(given.out) as folder:
                files.write_csv(folder / "opauc.csv", frame.to_dict("records"))
                draw(frame, folder / "opauc.png")
            print(f"files: {folder}/opauc.csv, opauc.png")
    except InputError as error:
        print(f"jaxneg: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
