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
A new sampler is one function, one row in PROPOSALS or SELECTORS, and one in METHODS.
"""

from collections.abc import Callable
from typing import NamedTuple

from jaxneg.errors import InputError
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


class Settings(NamedTuple):
    """What the methods can be told; each reads its own part."""

    num_in_batch: int = 50  # candidates per place from each distribution
    num_uniform: int = 50
    num_popularity: int = 50  # for popularity, inverse_popularity and popularity_cohort
    num_kept: int = 5  # K of the methods that choose by score; M of DNS(M, N)
    scope: str = "sequence"  # or "position" (always so for popularity_cohort), or "batch"
    pool: str = "uniform"  # what adaptive, dns and softmax_hard choose from; "mixed": the mixture
    mixture: tuple[str, ...] = ("in_batch", "uniform")  # what the mixed pools are made of, side by side
    mixed_exclude: str = "history"  # around what the mixed pools draw uniformly; the released code: "targets"
    dns_form: str = "average"  # dns keeps the top M; "random_one": one of them at random
    rho: float = 0.5  # hardness of softmax_hard
    exponent: float = 1.0  # popularity ~ frequency ** exponent


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

POOLS = ("uniform", "in_batch", "popularity", "inverse_popularity", "popularity_cohort", "mixed")
PARTS = POOLS[:-1]  # of a mixture

POOL, MIXTURE = ("pool",), ("mixture",)  # the proposals that a setting names
# method -> (its proposals, side by side), its selector
METHODS = {
    "uniform": (("uniform",), "all"),
    "popularity": (("popularity",), "all"),
    "inverse_popularity": (("inverse_popularity",), "all"),
    "popularity_cohort": (("popularity_cohort",), "all"),
    "in_batch": (("in_batch",), "all"),
    "mixed": (MIXTURE, "all"),
    "adaptive": (POOL, "top_k"),
    "adaptive_mixed": (MIXTURE, "top_k"),
    "dns": (POOL, "dns"),
    "softmax_hard": (POOL, "softmax"),
    "catalogue": ((), "all"),
}


def sources(method: str, settings: Settings) -> list[Source]:
    """The distributions that a method draws from, in the order of its candidates."""
    names = METHODS[method][0]
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
    selector, num_kept = SELECTORS[METHODS[method][1]](settings)
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
