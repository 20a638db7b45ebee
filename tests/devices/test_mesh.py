"""Seeds side by side: the same draws alone, together, and on any number of devices."""

import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxneg.devices import mesh as mesh_lib


def test_a_seeds_key_depends_on_the_root_and_itself_only():
    three, one = mesh_lib.seed_layout(3), mesh_lib.seed_layout(1)
    many = jax.random.key_data(mesh_lib.seed_keys(three, root=7))
    alone = [jax.random.key_data(mesh_lib.seed_keys(one, root=7, first=s))[0] for s in range(3)]
    assert np.array_equal(many, np.stack(alone))
    assert len(np.unique(np.asarray(many), axis=0)) == 3


def test_over_seeds_maps_what_has_a_seed_axis():
    layout = mesh_lib.seed_layout(3)
    function = mesh_lib.over_seeds(lambda x, shared: x * shared, layout, (True, False))
    assert function(jnp.arange(3.0), jnp.float32(2)).tolist() == [0, 2, 4]


def test_a_program_compiled_ahead_is_not_compiled_again():
    layout, compiled = mesh_lib.seed_layout(1), []

    def listener(event, seconds, **_):
        if "backend_compile" in event:
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        values = mesh_lib.put_per_seed(layout, np.arange(3.0, dtype=np.float32)[None])
        program = mesh_lib.over_seeds(lambda x: jnp.cumsum(jnp.tanh(x)), layout, (True,))
        ahead = mesh_lib.compiled_ahead(program, mesh_lib.traced(program, layout, (True,), values))
        result = ahead(values)
        np.testing.assert_allclose(result, np.cumsum(np.tanh(np.arange(3.0)))[None], rtol=1e-6)
        assert len(compiled) == 1
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def test_what_goes_wrong_in_a_compiler_ahead_is_raised_by_the_call():
    class Broken:
        def lower(self):
            raise MemoryError("no room to compile in")

    ahead = mesh_lib.compiled_ahead(lambda: None, Broken())
    with pytest.raises(MemoryError, match="no room"):
        ahead()


FAKE_DEVICES = """
import jax, numpy as np
from jaxneg.devices import mesh
assert jax.local_device_count() == 8

def draw(key, count):
    return jax.lax.fori_loop(0, count, lambda i, total: total + jax.random.uniform(jax.random.fold_in(key, i)), 0.0)

drawn = {}
for devices in (1, 8, 3):
    layout = mesh.seed_layout(20, jax.local_devices()[:devices])
    run = mesh.over_seeds(draw, layout, (True, False))
    drawn[devices] = np.asarray(mesh.take(layout, run(mesh.seed_keys(layout, 0), np.int32(5))))
    again = mesh.fill(layout, drawn[devices])
    assert again.shape == (layout.num_rows,) and len(again.sharding.device_set) == devices
assert drawn[1].shape == (20,)
assert np.array_equal(drawn[1], drawn[8]) and np.array_equal(drawn[1], drawn[3])
"""


def test_seeds_that_the_devices_do_not_divide(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    done = subprocess.run([sys.executable, "-c", FAKE_DEVICES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


CORES = """
import os, sys
from jaxneg.devices import mesh
os.sched_getaffinity = lambda _: {0, 1, 2}
mesh.use_cores(int(sys.argv[1]))
import jax
print(jax.device_count())
mesh.use_cores(3)
assert mesh.group_size(mesh.seed_layout(12)) == 1
print(jax.device_count())
"""


@pytest.mark.parametrize("num_seeds, told, devices", [(2, {}, 2), (20, {}, 3), (20, {"JAX_NUM_CPU_DEVICES": "5"}, 5)])
def test_seeds_are_spread_over_the_cores(monkeypatch, num_seeds, told, devices):
    """Unless JAX has begun, or the environment says how many devices there are."""
    for name, value in ({"JAX_PLATFORMS": "cpu"} | told).items():
        monkeypatch.setenv(name, value)
    done = subprocess.run([sys.executable, "-c", CORES, str(num_seeds)], capture_output=True, text=True)
    assert done.stdout.split() == [str(devices)] * 2, done.stderr


def test_twenty_seeds_are_the_same_on_eight_devices_and_alone(monkeypatch):
    """After 20 steps: the draws bit for bit, the weights to 1e-4."""
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8")
    script = pathlib.Path(__file__).parent.with_name("on_devices.py")
    done = subprocess.run([sys.executable, script, "adaptive_mixed"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_batches_data_and_items_split_over_devices(monkeypatch):
    """The draws bit for bit, the weights to 1e-4, the same ranks; and no program moves as much as a device's items."""
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8")
    script = pathlib.Path(__file__).parent.with_name("on_mesh.py")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
