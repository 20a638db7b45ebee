"""What every method of the table promises, whatever it draws."""

import doctest
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg import samplers
from jaxneg.types import Candidates, Negatives

# Compiling is what these tests take long for, so the compiler is told not to optimise.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

SETTINGS = samplers.Settings(num_in_batch=5, num_uniform=6, num_popularity=7, num_kept=3)
SAMPLES = {
    "uniform": 6,
    "popularity": 7,
    "inverse_popularity": 7,
    "popularity_cohort": 7,
    "in_batch": 5,
    "mixed": 11,
    "adaptive": 6,
    "adaptive_mixed": 11,
    "dns": 6,
    "softmax_hard": 6,
}
SCOPED = ("uniform", "popularity", "in_batch")  # the others are made of these, or have one scope
CASES = [(method, scope) for method in SAMPLES for scope in samplers.SCOPES if scope == "sequence" or method in SCOPED]


def test_every_method_is_under_contract():
    assert set(SAMPLES) == set(samplers.METHODS) - {"catalogue"}  # which draws nothing


class Drawn(NamedTuple):
    name: str
    scope: str
    method: samplers.Method
    tables: Any
    candidates: Candidates  # of KEY, jitted
    asked: jax.Array  # log_prob of those
    three: Candidates  # of three keys, vmapped; KEY's is the second


KEY = jax.random.key(3)


@functools.cache
def programs(sources: tuple, scope: str):
    """Jitted draws of one key and of several; methods that draw from the same proposals share them."""
    name = next(name for name in samplers.METHODS if samplers.METHODS[name].proposals == sources)
    proposal = samplers.make(name, 24, SETTINGS._replace(scope=scope)).proposal

    @jit
    def one(key, tables, batch):
        candidates = proposal.sample(key, tables, batch)
        return candidates, proposal.log_prob(tables, batch, candidates.item_ids)

    return one, jit(jax.vmap(proposal.sample, (0, None, None)))


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def drawn(request, world):
    name, scope = request.param
    method = samplers.make(name, world.num_items, SETTINGS._replace(scope=scope))
    tables = method.proposal.init(world.item_counts, world.target_counts)
    one, several = programs(samplers.METHODS[name].proposals, scope)
    three = several(jnp.stack([jax.random.key(9), KEY, jax.random.key(4)]), tables, world.batch)
    return Drawn(name, scope, method, tables, *one(KEY, tables, world.batch), three)


def test_shapes_and_types(drawn, world):
    name, scope, method, _, candidates, *_ = drawn
    rows, length = world.targets.shape
    scope = "position" if name == "popularity_cohort" else scope
    lead = {"sequence": (rows, 1), "position": (rows, length), "batch": (1, 1)}[scope]
    assert candidates.item_ids.shape == (*lead, SAMPLES[name])
    assert candidates.mask.shape == ((rows, 1) if scope == "batch" else lead) + (SAMPLES[name],)
    assert candidates.log_q.shape == candidates.mask.shape
    assert (candidates.item_ids.dtype, candidates.log_q.dtype, candidates.mask.dtype) == ("int32", "float32", "bool")
    assert method.num_candidates == method.proposal.num_samples == SAMPLES[name]
    by_score = name in ("adaptive", "adaptive_mixed", "dns", "softmax_hard")
    assert method.num_kept == (3 if by_score else SAMPLES[name])
    assert 1 <= candidates.item_ids.min() and candidates.item_ids.max() <= world.num_items


def test_nothing_of_the_user_is_a_negative(drawn, world):
    name, _, method, _, candidates, *_ = drawn
    rows, length = world.targets.shape
    shape = (rows, length, method.num_candidates)
    item_ids, mask = (np.broadcast_to(part, shape) for part in candidates[::2])
    from_batch = {"in_batch": SAMPLES[name], "mixed": 5, "adaptive_mixed": 5}.get(name, 0)  # these come first
    for row, history in enumerate(world.histories):
        for part, forbidden in [(np.s_[:, :from_batch], world.targets[row]), (np.s_[:, from_batch:], history)]:
            assert not np.isin(item_ids[row][part][mask[row][part]], forbidden).any()
    is_item = world.targets > 0
    assert mask[is_item].mean() > 0.3
    if name == "popularity_cohort":
        assert mask[is_item].all() and not mask[~is_item].any()


def test_log_q_is_the_probability_of_what_was_drawn(drawn):
    name, _, _, _, candidates, asked, _ = drawn
    log_q, mask = np.asarray(candidates.log_q), np.asarray(candidates.mask)
    assert np.isfinite(log_q).all() and (log_q[~mask] == 0).all() and (log_q[mask] < 0).all()
    whole = np.broadcast_to(mask.all(axis=2, keepdims=True), mask.shape)  # else a mixture counts what is left
    use = whole if "mixed" in name else mask
    assert use.any()
    np.testing.assert_allclose(log_q[use], np.broadcast_to(asked, mask.shape)[use], rtol=1e-5)


def assert_same(first, second):
    np.testing.assert_array_equal(first.item_ids, second.item_ids)
    np.testing.assert_array_equal(first.mask, second.mask)
    np.testing.assert_allclose(first.log_q, second.log_q, rtol=1e-5, atol=1e-6)


def test_the_key_alone_decides(drawn):
    """The same draw alone and vmapped over keys, and another one for another key."""
    assert_same(jax.tree.map(lambda x: x[1], drawn.three), drawn.candidates)
    item_ids = drawn.three.item_ids
    assert (item_ids[0] != item_ids[1]).any() and (item_ids[2] != item_ids[1]).any()


def test_eager_equals_jitted(world):
    """For one method: operation by operation the others would take minutes to compile."""
    method = samplers.make("uniform", world.num_items, SETTINGS)
    tables = method.proposal.init(world.item_counts)
    draws = [sample(KEY, tables, world.batch) for sample in (method.proposal.sample, jit(method.proposal.sample))]
    assert_same(*draws)


def test_unread_log_q_costs_nothing(world):
    """The programs of all proposals together: no logarithm is left in them unless log q is read."""
    proposals = [samplers.make(name, world.num_items, SETTINGS).proposal for name in ("popularity", "mixed")]
    tables = [proposal.init(world.item_counts) for proposal in proposals]

    def program(read):
        def run(key, tables, batch):
            return [read(p.sample(key, t, batch)) for p, t in zip(proposals, tables, strict=True)]

        return jit(run).lower(KEY, tables, world.batch)

    assert "log(" not in program(lambda candidates: (candidates.item_ids, candidates.mask)).compile().as_text()
    assert "stablehlo.log " in program(lambda candidates: candidates.log_q).as_text()  # it was there to be left out


def test_selector_keeps_what_it_should(drawn, world):
    method, candidates = drawn.method, drawn.candidates
    shape = (*world.targets.shape, method.num_candidates)
    scores = jax.random.normal(jax.random.key(1), shape)
    pool = Negatives(candidates.item_ids, scores, candidates.log_q, candidates.mask)
    positive_scores = jax.random.normal(jax.random.key(2), shape[:2])
    kept = jit(method.selector)(KEY, pool, positive_scores)
    assert kept.scores.shape == (*world.targets.shape, method.num_kept)
    assert kept.item_ids.shape[2] == kept.log_q.shape[2] == kept.mask.shape[2] == method.num_kept
    ids, offered, valid = (np.broadcast_to(x, shape) for x in (pool.item_ids, scores, pool.mask))
    chosen = [np.broadcast_to(x, kept.scores.shape) for x in (kept.item_ids, kept.scores, kept.mask)]
    for place in np.ndindex(*shape[:2]):  # each kept one is a candidate of its own place, whole
        candidates = set(zip(ids[place].tolist(), offered[place].tolist(), valid[place].tolist(), strict=True))
        assert candidates >= set(zip(*(x[place].tolist() for x in chosen), strict=True))
        assert (valid[place].sum() == 0) or chosen[2][place].any()


@pytest.mark.parametrize(
    "method, settings, message",
    [
        ("dns2", {}, "method is 'dns2'; allowed: uniform, popularity"),
        ("uniform", {"num_uniform": 0}, "sampler.num_uniform is 0; allowed: 1 or more"),
        ("in_batch", {"num_in_batch": -1}, "sampler.num_in_batch is -1; allowed: 1 or more"),
        ("uniform", {"num_uniform": 25}, "sampler.num_uniform is 25; allowed: at most the number of items, 24"),
        ("mixed", {"num_in_batch": 13, "num_uniform": 12}, "is 25; allowed: at most the number of items, 24"),
        ("adaptive", {"num_kept": 7}, "sampler.num_kept is 7; allowed: 1 to the pool's size"),
        ("adaptive", {"num_kept": 0}, "sampler.num_kept is 0; allowed: 1 or more"),
        ("adaptive", {"pool": "mixture"}, "sampler.pool is 'mixture'; allowed: uniform, in_batch, popularity"),
        ("dns", {"pool": "mixed", "num_kept": 12}, "num_in_batch + sampler.num_uniform = 11"),
        ("dns", {"num_kept": 0}, "sampler.num_kept is 0; allowed: 1 or more"),
        ("dns", {"dns_form": "all"}, "sampler.dns_form is 'all'; allowed: average, random_one"),
        ("softmax_hard", {"num_kept": 7}, "sampler.num_kept is 7; allowed: 1 to the pool's size"),
        ("softmax_hard", {"rho": -1.0}, "sampler.rho is -1.0; allowed: finite and 0 or more"),
        ("mixed", {"mixture": ()}, "sampler.mixture is (); allowed: some of uniform"),
        ("mixed", {"mixture": ("uniform", "uniform")}, "sampler.mixture is ('uniform', 'uniform'); allowed: some of"),
        ("mixed", {"mixture": ("uniform", "mixed")}, "sampler.mixture is 'mixed'; allowed: uniform, in_batch"),
        ("mixed", {"scope": "user"}, "sampler.scope is 'user'; allowed: sequence, position, batch"),
        ("popularity_cohort", {"scope": "user"}, "sampler.scope is 'user'"),
        ("mixed", {"mixed_exclude": "all"}, "exclude is 'all'; allowed: history, targets"),
    ],
)
def test_bad_settings_are_refused_in_one_line(method, settings, message):
    with pytest.raises(samplers.InputError) as raised:
        samplers.make(method, 24, SETTINGS._replace(**settings))
    assert message in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("counts", [np.zeros(25), np.ones(24), -np.ones(25), np.full(25, np.nan)])
def test_impossible_frequencies_are_refused(counts):
    for name in ("popularity", "popularity_cohort", "in_batch"):
        with pytest.raises(samplers.InputError, match="counts"):
            samplers.make(name, 24, SETTINGS).proposal.init(counts)


@pytest.mark.parametrize("method", ["adaptive", "dns", "softmax_hard"])
@pytest.mark.parametrize(
    "pool, count, tables",
    [
        ("uniform", 6, "tuple"),
        ("in_batch", 5, "InBatchTables"),
        ("popularity", 7, "WeightedTables"),
        ("inverse_popularity", 7, "WeightedTables"),
        ("popularity_cohort", 7, "CohortTables"),
        ("mixed", 11, "tuple"),
    ],
)
def test_what_chooses_takes_the_pool_it_is_told(method, pool, count, tables, world):
    made = samplers.make(method, world.num_items, SETTINGS._replace(pool=pool))
    assert (made.num_candidates, made.num_kept) == (count, 3)
    assert type(made.proposal.init(world.item_counts)).__name__ == tables


@pytest.mark.parametrize("method", ["mixed", "adaptive_mixed", "dns"])
def test_a_mixture_has_any_parts_in_their_order(method, world):
    """Popularity, in-batch and cohort side by side: seven, five and seven candidates, each with its own tables."""
    mixture = ("popularity", "in_batch", "popularity_cohort")
    made = samplers.make(method, world.num_items, SETTINGS._replace(mixture=mixture, pool="mixed"))
    tables = made.proposal.init(world.item_counts)
    assert [type(part).__name__ for part in tables] == ["WeightedTables", "InBatchTables", "CohortTables"]
    assert made.num_candidates == 19
    drawn = jit(made.proposal.sample)(KEY, tables, world.batch)
    item_ids, mask = (np.broadcast_to(x, (*world.targets.shape, 19)) for x in (drawn.item_ids, drawn.mask))
    assert np.isin(item_ids[..., 7:12][mask[..., 7:12]], world.targets).all()  # the batch's own positives
    assert (item_ids[:, :, :7] == item_ids[:, :1, :7]).all()  # popularity's are the sequence's, the cohort's are not
    assert not (item_ids[:, :, 12:] == item_ids[:, :1, 12:]).all()


def test_the_catalogue_draws_nothing(world):
    method = samplers.make("catalogue", world.num_items, SETTINGS)
    drawn = jit(method.proposal.sample)(KEY, method.proposal.init(world.item_counts), world.batch)
    assert (method.num_candidates, method.num_kept, method.proposal.num_samples) == (0, 0, 0)
    assert drawn.item_ids.shape == drawn.log_q.shape == drawn.mask.shape == (1, 1, 0)


def test_the_example_of_the_docstring():
    assert doctest.testmod(samplers) == doctest.TestResults(failed=0, attempted=9)
