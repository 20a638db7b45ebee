"""Draws follow the law that is computed here in float64 by other means; fixed keys, chi-square."""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxneg import losses, samplers
from jaxneg.data.cohorts import cohorts
from jaxneg.types import Batch, Negatives

# Compiling is what these tests take long for, so the compiler is told not to optimise.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

N = 16
NUM_KEYS = 1500
LEAST_P = 1e-4  # a fixed key: a test passes always or never


def draw_many(proposal, tables, batch, num_keys=NUM_KEYS, seed=0):
    keys = jax.random.split(jax.random.key(seed), num_keys)
    drawn = jit(jax.vmap(proposal.sample, (0, None, None)))(keys, tables, batch)
    shape = (num_keys, *np.broadcast_shapes(drawn.item_ids.shape[1:], drawn.mask.shape[1:]))
    return np.broadcast_to(drawn.item_ids, shape), np.broadcast_to(drawn.mask, shape)


def assert_follows(item_ids, probability):
    """Chi-square of drawn items against probabilities [V+1]; what has probability 0 must never come."""
    observed = np.bincount(item_ids.ravel(), minlength=len(probability))
    assert (observed[probability == 0] == 0).all()
    possible = probability > 0
    expected = probability[possible] * observed.sum()
    assert expected.min() > 5
    if possible.sum() > 1:
        assert stats.chisquare(observed[possible], expected).pvalue > LEAST_P


def weights_without(weights, excluded):
    left = np.array(weights, np.float64)
    left[0] = 0
    left[list(excluded)] = 0
    return left / max(left.sum(), 1e-300)


def popularity(counts, exponent):
    return np.where(counts > 0, np.maximum(counts, 1.0) ** exponent, 0.0)


def exclusions(world, which):
    return world.histories if which == "history" else [set(row[row > 0].tolist()) for row in world.targets]


# name -> (builder, weights of the items before exclusion, what is excluded)
IID = {
    "uniform": (samplers.uniform, {}, lambda counts: np.ones(len(counts)), "history"),
    "uniform-targets": (samplers.uniform, {"exclude": "targets"}, lambda counts: np.ones(len(counts)), "targets"),
    "popularity": (samplers.weighted, {}, lambda counts: popularity(counts, 1.0), "history"),
    "smoothed": (samplers.weighted, {"exponent": 0.75}, lambda counts: popularity(counts, 0.75), "history"),
    "inverse": (samplers.weighted, {"exponent": -1.0}, lambda counts: popularity(counts, -1.0), "history"),
}


@pytest.mark.parametrize(
    "name, scope",
    [
        (name, scope)
        for name in IID
        for scope in samplers.SCOPES
        if scope == "sequence" or name in ("uniform-targets", "popularity")
    ],
)
def test_independent_proposals(name, scope, world):
    build, options, weights_of, excluded = IID[name]
    proposal = build(world.num_items, N, scope=scope, **options)
    tables = proposal.init(world.item_counts)
    item_ids, mask = draw_many(proposal, tables, world.batch, NUM_KEYS // 4 if scope == "position" else NUM_KEYS)
    every_item = jnp.arange(1, world.num_items + 1)[None, None]
    told = np.exp(jit(proposal.log_prob)(tables, world.batch, every_item))[:, 0]
    for row, own in enumerate(exclusions(world, excluded)):
        right = weights_without(weights_of(world.item_counts), own)
        assert_follows(item_ids[:, row][mask[:, row]], right)
        np.testing.assert_allclose(told[row], right[1:], rtol=2e-6)
        # Draws are independent of each other, in a row and (other than for the batch's one set) between rows.
        first, second = item_ids[:, row, 0, 0], item_ids[:, row, -1, 1]
        keep = mask[:, row, 0, 0] & mask[:, row, -1, 1]
        assert_same_rate(first[keep] == second[keep], (right**2).sum())
    if scope == "sequence":
        assert mask.all()
        assert_same_rate(item_ids[:, 0, 0, 0] == item_ids[:, 1, 0, 0], (told[0] * told[1]).sum())


def assert_same_rate(events, probability):
    """Binomial test of a yes-or-no event."""
    assert stats.binomtest(int(events.sum()), len(events), float(probability)).pvalue > LEAST_P


def cohort_law(world, row, position, own=0.8):
    """By brute force over the items: cohort by the positive, renormalised over those with anything left."""
    of_item = cohorts(world.item_counts)
    target = world.targets[row, position]
    allowed = [i for i in range(1, world.num_items + 1) if i not in world.histories[row]]
    left = collections.Counter(of_item[allowed].tolist())
    share = {c: own if c == of_item[target] else (1 - own) / 2 for c in range(3) if left[c]}
    total = sum(share.values())
    law = np.zeros(world.num_items + 1)
    for item in allowed:
        law[item] = share[of_item[item]] / total / left[of_item[item]]
    return law


def test_cohort(world):
    proposal = samplers.cohort(world.num_items, N)
    tables = proposal.init(world.item_counts)
    item_ids, mask = draw_many(proposal, tables, world.batch)
    told = np.exp(jit(proposal.log_prob)(tables, world.batch, jnp.arange(1, world.num_items + 1)[None, None]))
    seen = set()
    for row, position in zip(*np.nonzero(world.targets), strict=True):
        law = cohort_law(world, row, position)
        assert mask[:, row, position].all()
        assert_follows(item_ids[:, row, position], law)
        np.testing.assert_allclose(told[row, position], law[1:], rtol=1e-5)
        seen.add(int(cohorts(world.item_counts)[world.targets[row, position]]))
    assert seen == {0, 1, 2}


def test_cohort_that_the_history_exhausts(world, make_batch):
    """A user with the whole head: its share goes to mid and tail in proportion; with everything: all is masked."""
    of_item = cohorts(world.item_counts)
    head, rest = np.flatnonzero(of_item == 0), np.flatnonzero(of_item > 0)
    everything = np.arange(1, world.num_items + 1)
    targets = [[0, head[0]], [head[0], rest[0]]]
    small = world._replace(histories=[head, everything], targets=np.array(targets))
    proposal = samplers.cohort(world.num_items, N, probabilities=(0.6, 0.3, 0.1))
    tables = proposal.init(world.item_counts)
    batch = make_batch(small.histories, targets, world.num_items)
    item_ids, mask = draw_many(proposal, tables, batch)
    assert mask[:, 0, 1].all() and not mask[:, 0, 0].any() and not mask[:, 1].any()
    mid, tail = (np.flatnonzero(of_item == c) for c in (1, 2))
    law = np.zeros(world.num_items + 1)
    law[mid], law[tail] = 0.75 / len(mid), 0.25 / len(tail)
    assert_follows(item_ids[:, 0, 1], law)


@pytest.mark.parametrize("scope", ["position", "batch"])
def test_in_batch_is_the_multiset_without_own_items(scope, world):
    """One place's draw: every other sequence's slot is equally likely, so a repeated item comes twice as often."""
    proposal = samplers.in_batch(world.num_items, 4, scope=scope)
    item_ids, mask = draw_many(proposal, proposal.init(world.item_counts), world.batch)
    slots = np.bincount(world.targets.ravel(), minlength=world.num_items + 1)
    for row, own in enumerate(exclusions(world, "targets")):
        for place in range(4 if scope != "batch" else 1):
            assert_follows(item_ids[:, row, :, place][mask[:, row, :, place]], weights_without(slots, own))
    if scope != "batch":
        assert mask.all()


def test_in_batch_is_without_replacement(make_batch):
    """Ordered triples from a small multiset, each as likely as brute force says; rows draw independently."""
    targets = [[1, 2, 2], [3, 3, 4], [5, 2, 6], [0, 0, 7]]
    histories = [sorted({item for item in row if item}) for row in targets]
    batch = make_batch(histories, targets, 8)
    proposal = samplers.in_batch(8, 3)
    item_ids, mask = draw_many(proposal, proposal.init(np.ones(9)), batch, 20000)
    assert mask.all()
    for row, own in enumerate(histories):
        pool = [item for other in targets for item in other if item and item not in own]
        law = collections.Counter(itertools.permutations(pool, 3))
        seen = collections.Counter(map(tuple, item_ids[:, row, 0].tolist()))
        assert set(seen) == set(law)
        expected = np.array(list(law.values())) / sum(law.values()) * 20000
        assert stats.chisquare([seen[triple] for triple in law], expected).pvalue > LEAST_P
    both = item_ids[:, [1, 2], 0, 0]  # the first draws of two rows, over pools that share 1 and 7
    table = stats.contingency.crosstab(both[:, 0], both[:, 1]).count
    assert stats.chi2_contingency(table).pvalue > LEAST_P


def test_in_batch_takes_all_of_a_pool_that_is_too_small(make_batch):
    targets = [[1, 2, 2], [3, 3, 4], [0, 0, 2], [0, 0, 0]]
    batch = make_batch([[1, 2], [3, 4], [2], []], targets, 6)
    for scope in ("sequence", "position"):
        proposal = samplers.in_batch(6, 6, scope=scope)
        item_ids, mask = draw_many(proposal, proposal.init(np.ones(7)), batch, 200)
        pools = [[3, 3, 4], [1, 2, 2, 2], [1, 3, 3, 4], [1, 2, 2, 2, 3, 3]]  # of the last row: 6 of 7
        for row, pool in enumerate(pools[:3]):
            assert (mask[:, row].sum(axis=-1) == len(pool)).all()
            drawn = np.sort(item_ids[:, row][mask[:, row]].reshape(-1, len(pool)), axis=1)
            assert (drawn == pool).all()
        assert mask[:, 3].all()
    alone = make_batch([[1, 2]], [[1, 2, 1]], 6)
    assert not draw_many(proposal, proposal.init(np.ones(7)), alone, 5)[1].any()


def test_in_batch_is_right_where_it_must_look_long(make_batch):
    """Half of the slots are pads' neighbours and own items: many windows, each slot still at most once."""
    rng = np.random.default_rng(0)
    targets = rng.permutation(np.r_[np.ones(1900), np.arange(2, 102)].astype(np.int32)).reshape(20, 100)
    targets[0] = 1
    batch = make_batch([np.unique(row) for row in targets], targets, 101)
    proposal = samplers.in_batch(101, 10)
    item_ids, mask = draw_many(proposal, proposal.init(np.ones(102)), batch, 300)
    assert mask[:, 0].all()
    drawn = item_ids[:, 0, 0]
    assert all(len(set(row)) == 10 for row in drawn.tolist())
    slots = np.bincount(targets.ravel(), minlength=102)
    assert_follows(drawn, weights_without(slots, [1]))


def random_batches(num_items, num_batches, rows=24, length=4, seed=1):
    """Batches [num_batches, ...] of users drawn at random, one of them always in the first row; how often each item
    is a target [V+1]; and that user's items. A third of the users have shorter sequences, left-padded."""
    rng = np.random.default_rng(seed)
    num_users = 40
    weights = 1 / np.arange(1, num_items + 1)
    users = np.stack(
        [rng.choice(num_items, length, replace=False, p=weights / weights.sum()) + 1 for _ in range(num_users)]
    ).astype(np.int32)
    users[::3, :2] = 0
    picked = rng.integers(num_users, size=(num_batches, rows))
    picked[:, 0] = 5
    targets = users[picked]
    history = np.sort(np.where(targets > 0, targets, num_items + 1), axis=2)
    batch = Batch(targets, targets, history, (targets > 0).sum(axis=2).astype(np.int32))
    counts = np.append(0, np.bincount(users.ravel(), minlength=num_items + 1)[1:])
    return jax.tree.map(jnp.asarray, batch), counts, users[5]


@pytest.mark.parametrize("scope", ["sequence", "batch"])
@pytest.mark.parametrize("kind", ["in_batch", "mixture"])
def test_log_q_over_random_batches(kind, scope):
    """Of n draws at a place, the sum of 1 / (n q) over those that are an item is 1 on average, for every item that is
    not the user's own: what logQ is for, whatever distributions are mixed and however many the masks leave."""
    num_items, num_batches = 14, 2000
    batch, counts, own = random_batches(num_items, num_batches)
    proposal = samplers.in_batch(num_items, 10, scope=scope)
    if kind == "mixture":
        proposal = samplers.concatenate(
            proposal, samplers.uniform(num_items, 4, scope=scope), samplers.weighted(num_items, 6, scope=scope)
        )
    tables = proposal.init(1 + np.arange(num_items + 1)[::-1], counts)
    keys = jax.random.split(jax.random.key(0), num_batches)
    drawn = jit(jax.vmap(proposal.sample, (0, None, 0)))(keys, tables, batch)
    shape = (num_batches, *np.broadcast_shapes(drawn.item_ids.shape[1:], drawn.mask.shape[1:]))
    item_ids, log_q, mask = (np.broadcast_to(x, shape)[:, 0, 0] for x in drawn)
    assert not np.isin(item_ids[mask], own).any()
    weight = np.where(mask, np.exp(-log_q.astype(np.float64)) / np.maximum(mask.sum(axis=1, keepdims=True), 1), 0)
    each = np.stack([np.bincount(ids, w, num_items + 1) for ids, w in zip(item_ids, weight, strict=True)])
    each = each[mask.any(axis=1)]
    possible = np.setdiff1d(np.flatnonzero(counts) if kind == "in_batch" else np.arange(1, num_items + 1), own)
    mean, error = each.mean(axis=0)[possible], each.std(axis=0)[possible] / np.sqrt(len(each))
    # In-batch q is a share of all targets; a batch of 24 rows, one of which is the user's, is off it by about 1/24.
    np.testing.assert_array_less(np.abs(mean - 1), 4 * error + 0.03)
    if kind == "in_batch":
        one = jax.tree.map(lambda x: x[0], batch)
        told = jit(proposal.log_prob)(tables, one, jnp.arange(1, num_items + 1)[None, None])[0, 0]
        np.testing.assert_allclose(np.exp(told), weights_without(counts, own)[1:], rtol=1e-5)


def test_logq_makes_the_softmax_unbiased(world):
    """exp of the corrected scores, summed, is on average the sum over all items that may be drawn."""
    num_items = world.num_items
    proposal = samplers.concatenate(samplers.weighted(num_items, 5, exponent=0.5), samplers.uniform(num_items, 4))
    tables = proposal.init(world.item_counts)
    scores_of = np.random.default_rng(2).normal(size=num_items + 1).astype(np.float32)

    def estimate(key):
        drawn = proposal.sample(key, tables, world.batch)
        shape = (*world.targets.shape, drawn.item_ids.shape[2])
        scores = jnp.broadcast_to(jnp.asarray(scores_of)[drawn.item_ids], shape)
        loss = losses.sampled_softmax(jnp.zeros(shape[:2]), Negatives(drawn.item_ids, scores, *drawn[1:]))
        return jnp.expm1(loss)[:, 0]  # a positive of score 0: the loss is log(1 + sum)

    sums = np.asarray(jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 4000)), np.float64)
    for row, own in enumerate(world.histories):
        allowed = np.setdiff1d(np.arange(1, num_items + 1), own)
        truth = np.exp(scores_of[allowed].astype(np.float64)).sum()
        assert abs(sums[:, row].mean() - truth) < 4 * sums[:, row].std() / np.sqrt(len(sums))


@pytest.mark.parametrize("parts", ["two", "three"])
def test_mixture_log_q(parts, world):
    """log q of a concatenation is that of a candidate picked at random from all of them."""
    v = world.num_items
    proposal = {
        "two": lambda: samplers.concatenate(samplers.weighted(v, 12), samplers.uniform(v, 4, exclude="targets")),
        "three": lambda: samplers.concatenate(
            samplers.cohort(v, 5), samplers.uniform(v, 2, scope="position"), samplers.weighted(v, 6)
        ),
    }[parts]()
    tables = proposal.init(world.item_counts)
    item_ids, mask = draw_many(proposal, tables, world.batch, 1000)
    told = np.exp(jit(proposal.log_prob)(tables, world.batch, jnp.arange(1, v + 1)[None, None]))
    for row in range(1, len(world.histories)):  # row 0 has no target
        law = told[row, -1].astype(np.float64)
        assert abs(law.sum() - 1) < 1e-5 and mask[:, row, -1].all()
        assert_follows(item_ids[:, row, -1], np.append(0, law / law.sum()))


def test_mixture_counts_what_the_masks_leave(world, make_batch):
    """A pool that ran dry has no weight: with no in-batch candidate, log q is the uniform one."""
    alone = make_batch([[1, 2]], [[1, 2]], 24)
    proposal = samplers.concatenate(samplers.in_batch(24, 5), samplers.uniform(24, 5))
    drawn = jit(proposal.sample)(jax.random.key(0), proposal.init(world.item_counts), alone)
    np.testing.assert_array_equal(drawn.mask[0, 0], [False] * 5 + [True] * 5)
    np.testing.assert_allclose(drawn.log_q[0, 0, 5:], -np.log(22), rtol=1e-6)


def test_mixture_of_scopes(world):
    proposal = samplers.concatenate(samplers.uniform(24, 3, scope="batch"), samplers.uniform(24, 2, scope="position"))
    drawn = jit(proposal.sample)(jax.random.key(0), proposal.init(world.item_counts), world.batch)
    assert drawn.item_ids.shape == drawn.mask.shape == (*world.targets.shape, 5)
    assert (drawn.item_ids[:, :, :3] == drawn.item_ids[:1, :1, :3]).all()


def test_mixture_of_nothing():
    with pytest.raises(samplers.InputError, match="one or more"):
        samplers.concatenate()


@pytest.mark.parametrize("build, padding", [(samplers.uniform, 0), (samplers.uniform, 7), (samplers.weighted, 7)])
def test_the_last_item_left_is_found_and_none_is_masked(build, padding, make_batch):
    every = np.arange(1, 10)
    batch = make_batch([every, np.delete(every, 3), []], np.ones((3, 2)), 9, padding)
    proposal = build(9, 5)
    item_ids, mask = draw_many(proposal, proposal.init(np.ones(10)), batch, 50)
    assert not mask[:, 0].any() and mask[:, 2].all()
    assert (item_ids[:, 1][mask[:, 1]] == 4).all() and mask[:, 1].mean() > 0.9
    assert mask[:, 1].all() or build is samplers.weighted  # bounded redraws of 1 in 9 may leave a place empty
    assert set(item_ids[:, 2].ravel().tolist()) == set(range(1, 10))


def test_redraws_are_bounded_and_leave_the_law(make_batch):
    """A history of 80% of the probability: 17 times as many draws fill all; none leaves about a quarter filled."""
    counts = np.array([0, 80, 1, 2, 3, 4, 10])
    batch = make_batch([[1]], [[1]], 6)
    filled = {}
    for redraws in (0, 16):
        proposal = samplers.weighted(6, N, max_redraws=redraws)
        item_ids, mask = draw_many(proposal, proposal.init(counts), batch)
        filled[redraws] = mask.mean()
        assert_follows(item_ids[mask], np.array([0, 0, 1, 2, 3, 4, 10]) / 20)
    assert filled[16] > 0.999 and 0.15 < filled[0] < 0.35
    with pytest.raises(samplers.InputError, match="max_redraws is -1"):
        samplers.weighted(6, N, max_redraws=-1)
    whole = make_batch([[1, 2]], [[1, 2]], 3)  # the third item has frequency 0
    proposal = samplers.weighted(3, 2)
    assert not draw_many(proposal, proposal.init([0, 5, 5, 0]), whole, 5)[1].any()


@pytest.mark.parametrize("probabilities", [(0.5, 0.5), (0.9, 0.2, -0.1), (0.5, 0.5, 0.5)])
def test_bad_cohort_probabilities(probabilities):
    with pytest.raises(samplers.InputError, match="three numbers"):
        samplers.cohort(9, 2, probabilities=probabilities)
