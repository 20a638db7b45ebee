"""How much a compiler does that fuses all it can: the operations of a traced function, each as often as it is used.

XLA joins elementwise operations one after another into one loop, and within it works out a value anew for each of its
uses. A chain in which every value is used twice so becomes exponentially long code: twelve rounds of a shuffling
network took jax 0.12 minutes to compile, and jax 0.10 a second. The count is that of the worst case, and needs no
compiler.
"""

import jax
import jax.extend.core

# What ends a fusion: its result is written down, and read as often as it is used.
WRITTEN = {
    "optimization_barrier",
    "dot_general",
    "gather",
    "scatter",
    "scatter-add",
    "scatter_add",
    "sort",
    "top_k",
    "cumsum",
    "reduce_sum",
    "reduce_max",
    "reduce_min",
    "reduce_and",
    "reduce_or",
    "argmax",
    "argmin",
    "reduce",
    "while",
    "scan",
    "cond",
    "random_bits",
    "threefry2x32",
    "random_split",
    "random_fold_in",
    "custom_linear_solve",
    "psum",
    "all_gather",
    "dynamic_update_slice",
    "cumlogsumexp",
    "cummax",
    "cumprod",
    "reduce_prod",
    "reduce_precision",
    "shard_map",
}
LOOPS = {"while", "scan", "cond", "shard_map"}


def recomputed(jaxpr) -> float:
    """The most operations that any one value takes, if all that can be recomputed for each use is."""
    return _walk(getattr(jaxpr, "jaxpr", jaxpr), None)[1]


def _walk(jaxpr, arguments: list[float] | None) -> tuple[list[float], float]:
    """(cost of each result, the most of any value) of a program with arguments of these costs."""
    cost = dict(zip(jaxpr.invars, arguments or [0.0] * len(jaxpr.invars), strict=True))
    most = 0.0

    def of(var):
        return 0.0 if isinstance(var, jax.extend.core.Literal) else cost.get(var, 0.0)

    for equation in jaxpr.eqns:
        name, inputs = equation.primitive.name, [of(var) for var in equation.invars]
        inside = [value for value in equation.params.values() if hasattr(value, "eqns") or hasattr(value, "jaxpr")]
        inside += [
            one
            for value in equation.params.values()
            if isinstance(value, tuple)
            for one in value
            if hasattr(one, "eqns") or hasattr(one, "jaxpr")
        ]
        inside = [getattr(one, "jaxpr", one) for one in inside]
        if name in LOOPS or name in WRITTEN or not inside:
            most = max([most, *(_walk(one, None)[1] for one in inside)])
            total = 1.0 + sum(inputs)
            results = [0.0 if name in WRITTEN else total] * len(equation.outvars)
            most = max(most, total)
        else:  # a function that is called: part of the same fusion
            results, within = _walk(inside[0], inputs[-len(inside[0].invars) :] if inside[0].invars else [])
            most = max(most, within)
        cost |= dict(zip(equation.outvars, results, strict=False))
    return [of(var) for var in jaxpr.outvars], most
