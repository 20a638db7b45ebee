"""Negative samplers: a method is a proposal (which items are drawn) and a selector (which of them are kept).

They serve any training loop; only jax, numpy and jaxtyping are imported. Negatives for a batch in five lines, given
`item_counts` [V+1] (how many users have each item; index 0 is the pad's) and a `Batch`, whose `history` is each user's
distinct items, ascending, padded with V + 1:

>>> import jax, jax.numpy as jnp
>>> from jaxneg.types import Batch
>>> item_counts = [0, 3, 2, 2, 1, 1]
>>> batch = Batch(jnp.array([[1, 2]]), jnp.array([[2, 3]]), jnp.array([[1, 2, 3, 6]]), jnp.array([3]))

>>> from jaxneg import samplers
>>> method = samplers.make("popularity", num_items=5, settings=samplers.Settings(num_popularity=4))
>>> tables = method.proposal.init(item_counts)
>>> candidates = jax.jit(method.proposal.sample)(jax.random.key(0), tables, batch)
>>> candidates.item_ids.shape, bool((candidates.item_ids > 3).all()), bool(candidates.mask.all())
((1, 1, 4), True, True)

Score them, and let the selector choose: `method.selector(key, Negatives(item_ids, scores, log_q, mask),
positive_scores)`.
A new sampler is one function, one row in PROPOSALS or SELECTORS, and one in METHODS, whose words --help prints.
"""

from collections.abc import Callable
from typing import Annotated, NamedTuple

from jaxneg.errors import InputError
from jaxneg.fields import NOT_NEGATIVE, Release, at_least, each_of_once, one_of, up_to
from jaxneg.samplers import select
from jaxneg.samplers.base import SCOPES, Method, Proposal, check_scope
from jaxneg.samplers.catalogue import catalogue
from jaxneg.samplers.cohort import cohort
from jaxneg.samplers.combine import concatenate
from jaxneg.samplers.in_batch import in_batch
from jaxneg.samplers.uniform import uniform
from jaxneg.samplers.weighted import weighted

__all__ = [
    "DNS_FORMS",
    "METHODS",
    "POOLS",
    "PROPOSALS",
    "SCOPES",
    "SELECTORS",
    "Method",
    "Proposal",
    "Settings",
    "catalogue",
    "cohort",
    "concatenate",
    "in_batch",
    "make",
    "select",
    "uniform",
    "weighted",
]


PARTS = ("uniform", "in_batch", "popularity", "inverse_popularity", "popularity_cohort")  # of a mixture
POOLS = (*PARTS, "mixed")


class Settings(NamedTuple):
    """What the methods can be told; each reads its own part."""

    num_in_batch: Annotated[int, at_least(0, 10**6), "in-batch negatives, where a method draws any"] = 10
    num_uniform: Annotated[int, at_least(0, 10**6), "uniform negatives, where a method draws any"] = 100
    num_popularity: Annotated[
        int, at_least(0, 10**6), "negatives of popularity, inverse_popularity and popularity_cohort"
    ] = 50
    num_kept: Annotated[
        int, at_least(1, 10**6), "candidates kept (adaptive, adaptive_mixed, softmax_hard); M of dns"
    ] = 5
    scope: Annotated[
        str,
        one_of("sequence", "position", "batch"),
        "who shares one set of negatives: a sequence's positions, nobody, or the batch",
    ] = "sequence"  # popularity_cohort always has one for each position
    pool: Annotated[str, one_of(*POOLS), "what adaptive, dns and softmax_hard choose from", Release("in_batch")] = (
        "uniform"
    )
    mixture: Annotated[
        tuple[str, ...],
        each_of_once(PARTS, "('in_batch', 'uniform')"),
        "what the mixed pools are made of, side by side",
    ] = ("in_batch", "uniform")
    mixed_exclude: Annotated[
        str, one_of("history", "targets"), "what the uniform part of a mixed pool leaves out", Release("targets")
    ] = "history"
    dns_form: Annotated[str, one_of("average", "random_one"), "dns keeps the top M, or one of them at random"] = (
        "average"
    )
    rho: Annotated[float, NOT_NEGATIVE, "hardness of softmax_hard; 0: all of the pool alike"] = 0.5
    exponent: Annotated[float, up_to(10), "popularity draws by frequency to this power"] = 1.0


class Source(NamedTuple):
    """One distribution as methods name it: how to build it, and the setting that counts its candidates."""

    build: Callable  # (num_items, settings) -> Proposal
    count: str


def _uniform(num_items: int, settings: Settings) -> Proposal:
    return uniform(num_items, settings.num_uniform, scope=settings.scope)


def _uniform_in_mixture(num_items: int, settings: Settings) -> Proposal:
    return uniform(num_items, settings.num_uniform, scope=settings.scope, exclude=settings.mixed_exclude)


def _popularity(num_items: int, settings: Settings) -> Proposal:
    return weighted(num_items, settings.num_popularity, exponent=settings.exponent, scope=settings.scope)


def _inverse_popularity(num_items: int, settings: Settings) -> Proposal:
    return weighted(num_items, settings.num_popularity, exponent=-settings.exponent, scope=settings.scope)


def _popularity_cohort(num_items: int, settings: Settings) -> Proposal:
    return cohort(num_items, settings.num_popularity)


def _in_batch(num_items: int, settings: Settings) -> Proposal:
    return in_batch(num_items, settings.num_in_batch, scope=settings.scope)


PROPOSALS = {
    "uniform": Source(_uniform, "num_uniform"),
    "uniform_in_mixture": Source(_uniform_in_mixture, "num_uniform"),
    "popularity": Source(_popularity, "num_popularity"),
    "inverse_popularity": Source(_inverse_popularity, "num_popularity"),
    "popularity_cohort": Source(_popularity_cohort, "num_popularity"),
    "in_batch": Source(_in_batch, "num_in_batch"),
}

DNS_FORMS = {
    "average": lambda settings: (select.top_k(settings.num_kept), settings.num_kept),
    "random_one": lambda settings: (select.random_of_top(settings.num_kept), 1),
}

# name -> settings -> (selector, K); "all" keeps the N that it is given
SELECTORS = {
    "all": lambda settings: (select.all, None),
    "top_k": DNS_FORMS["average"],
    "dns": lambda settings: DNS_FORMS[settings.dns_form](settings),
    "softmax": lambda settings: (select.softmax(settings.num_kept, settings.rho), settings.num_kept),
}

POOL = ("pool",)  # the proposals that a setting names
MIXTURE = ("mixture",)


class Recipe(NamedTuple):
    """What a method is made of."""

    about: str
    proposals: tuple[str, ...]  # side by side
    selector: str


METHODS = {
    "uniform": Recipe("items drawn uniformly from those that the user has not met (paper: RNS)", ("uniform",), "all"),
    "popularity": Recipe("drawn by training frequency (PNS)", ("popularity",), "all"),
    "inverse_popularity": Recipe("drawn by 1 / training frequency (IPNS)", ("inverse_popularity",), "all"),
    "popularity_cohort": Recipe(
        "drawn mostly from the positive's own cohort: head, mid or tail (PCNS)", ("popularity_cohort",), "all"
    ),
    "in_batch": Recipe("other users' positives of the same batch (BNS)", ("in_batch",), "all"),
    "mixed": Recipe("in-batch and uniform together (MNS)", MIXTURE, "all"),
    "adaptive": Recipe("the hardest of a uniform pool, by the model's own scores (ANS)", POOL, "top_k"),
    "adaptive_mixed": Recipe("the hardest of a mixed pool (AMNS); used where no method is named", MIXTURE, "top_k"),
    "dns": Recipe("DNS(M, N): the M hardest of N (num_kept of the pool), or one of them at random", POOL, "dns"),
    "softmax_hard": Recipe(
        "Softmax-v(rho, N): drawn from the pool the likelier, the harder; rho says how much", POOL, "softmax"
    ),
    "catalogue": Recipe("no draws: every item is a negative; for loss full_softmax", (), "all"),
}


def sources(method: str, settings: Settings) -> list[Source]:
    """The distributions that a method draws from, in the order of its candidates."""
    names = METHODS[method].proposals
    if names == POOL:
        names = MIXTURE if settings.pool == "mixed" else (settings.pool,)
    if names == MIXTURE:
        names = ["uniform_in_mixture" if name == "uniform" else name for name in settings.mixture]
    return [PROPOSALS[name] for name in names]


def make(method: str, num_items: int, settings: Settings | None = None) -> Method:
    """The method of that name for items 1..num_items.

    Raises InputError, with the value and what is allowed, for an unknown method, scope, pool, part of the mixture or
    form of dns, counts below 1, more candidates than items, and more kept than there are candidates.
    """
    settings = Settings() if settings is None else settings
    check_names(method, settings)
    parts = sources(method, settings)
    for source in parts:
        count = getattr(settings, source.count)
        if count < 1:
            raise InputError(f"sampler.{source.count} is {count}; allowed: 1 or more")
    num_candidates = sum(getattr(settings, source.count) for source in parts)
    counts = " + ".join(f"sampler.{source.count}" for source in parts)
    if num_candidates > num_items:
        raise InputError(f"{counts} is {num_candidates}; allowed: at most the number of items, {num_items}")
    selector, num_kept = SELECTORS[METHODS[method].selector](settings)
    if num_kept is not None and settings.num_kept > num_candidates:
        raise InputError(
            f"sampler.num_kept is {settings.num_kept}; allowed: 1 to the pool's size, {counts} = {num_candidates}"
        )
    proposals = [source.build(num_items, settings) for source in parts]
    proposal = concatenate(*proposals) if len(proposals) > 1 else (proposals or [catalogue()])[0]
    return Method(proposal, selector, num_candidates, num_candidates if num_kept is None else num_kept)


def check_names(method: str, settings: Settings) -> None:
    """Raises InputError for an unknown name, with the known ones."""
    named = [
        ("method", method, tuple(METHODS)),
        ("sampler.pool", settings.pool, POOLS),
        ("sampler.dns_form", settings.dns_form, tuple(DNS_FORMS)),
    ]
    named += [("sampler.mixture", part, PARTS) for part in settings.mixture]
    for field, name, known in named:
        if name not in known:
            raise InputError(f"{field} is {name!r}; allowed: {', '.join(known)}")
    if not settings.mixture or len(set(settings.mixture)) < len(settings.mixture):
        raise InputError(f"sampler.mixture is {settings.mixture}; allowed: some of {', '.join(PARTS)}, each once")
    check_scope(settings.scope)
