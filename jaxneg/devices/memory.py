"""How much memory a program will need, from its traced form, before it is compiled; and how much there is."""

import pathlib
from typing import Any

import jax
import jax.extend.core
import numpy as np
import psutil

# Operations whose result may take the place of an operand that is not used again.
IN_PLACE = ("scatter", "while", "reshape")
CGROUP_LIMIT = pathlib.Path("/sys/fs/cgroup/memory.max")


def tree_bytes(tree: Any) -> int:
    """Bytes of all arrays of a tree (or of their shapes)."""
    return sum(_bytes(leaf) for leaf in jax.tree.leaves(tree))


def peak_bytes(jaxpr, donated: bool = False) -> int:
    """The most bytes that are alive at once if the operations of a jaxpr run in order and none is fused.

    Arguments count as alive all along; `donated` ones may be written over by an operation of IN_PLACE. A compiler that
    fuses needs less, one that copies may need more.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    last_use = {}
    for index, equation in enumerate(jaxpr.eqns):
        last_use |= {var: index for var in equation.invars if _is_variable(var)}
    last_use |= {var: len(jaxpr.eqns) for var in jaxpr.outvars if _is_variable(var)}
    arguments = {*jaxpr.invars, *jaxpr.constvars}
    alive = peak = sum(_bytes(var.aval) for var in arguments)
    dies = {}
    for var, index in last_use.items():
        dies.setdefault(index, []).append(var)
    for index, equation in enumerate(jaxpr.eqns):
        dying = [var for var in dies.get(index, ()) if donated or var not in arguments]
        replaced = _replaced(equation, dying)
        made = sum(_bytes(var.aval) for var in equation.outvars if var not in replaced)
        given = sum(_bytes(var.aval) for var in equation.invars)
        inside = jaxprs_inside(equation.params)
        inner = max((peak_bytes(one, equation.primitive.name == "while") for one in inside), default=0)
        peak = max(peak, alive + max(made, inner - given))
        arguments |= {out for out, operand in replaced.items() if operand in arguments}  # it lies in their buffer
        alive += sum(_bytes(var.aval) for var in equation.outvars if var in last_use and var not in arguments)
        alive -= sum(_bytes(var.aval) for var in dies.get(index, ()) if var not in arguments)
    return peak


def _replaced(equation, dying: list) -> dict:
    """{result: the operand whose buffer it takes} of an operation, the operands being among those that die there."""
    found = {}
    for out in equation.outvars if equation.primitive.name in IN_PLACE else ():
        free = (
            var
            for var in dying
            if var in equation.invars
            and var not in found.values()
            and (var.aval.size, var.aval.dtype) == (out.aval.size, out.aval.dtype)
        )
        operand = next(free, None)
        if operand is not None:
            found[out] = operand
    return found


def jaxprs_inside(params: dict) -> list:
    """The programs that an operation runs: a loop's body, the branches of a choice."""
    found = []
    for value in params.values():
        values = value if isinstance(value, tuple | list) else (value,)
        found += [one for one in values if isinstance(one, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr)]
    return found


def device_bytes(device: jax.Device) -> int | None:
    """Memory of a device for this process: what its runtime may use, or what is free on the host; None: unknown."""
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    free = psutil.virtual_memory().available
    limit = CGROUP_LIMIT.read_text().strip() if CGROUP_LIMIT.is_file() else "max"
    return free if limit == "max" else min(free, int(limit))


def in_words(number: float) -> str:
    """Bytes as people read them: "850 MiB", "3.2 GiB"."""
    mebibytes = number / 2**20
    return f"{mebibytes / 1024:,.1f} GiB" if mebibytes >= 1000 else f"{mebibytes:,.0f} MiB"


def _is_variable(var: Any) -> bool:
    return not isinstance(var, jax.extend.core.Literal)


def _bytes(aval: Any) -> int:
    aval = getattr(aval, "aval", aval)
    size, dtype = int(np.prod(getattr(aval, "shape", ()), dtype=np.int64)), getattr(aval, "dtype", None)
    return size * getattr(dtype, "itemsize", 0)
