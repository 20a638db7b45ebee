"""launch/colab.ipynb: stored without outputs, and run from top to bottom at a small size, without a network."""

import asyncio
import json
import os
import pathlib
import sys

import nbclient
import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager

ROOT = pathlib.Path(__file__).parent.parent
FILE = ROOT / "launch/colab.ipynb"
SMALL = {
    "num_epochs": 2,
    "eval_every": 1,
    "batch_size": 32,
    "model.width": 8,
    "model.num_blocks": 1,
    "model.max_len": 8,
    "num_buckets": 1,
    "sampler.num_in_batch": 4,
    "sampler.num_uniform": 10,
    "sampler.num_popularity": 10,
    "data.synthetic.num_rows": 3000,
    "data.synthetic.num_users": 150,
    "data.synthetic.num_items": 80,
}


def test_it_is_a_sound_notebook_without_outputs():
    notebook = nbformat.read(FILE, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert notebook.nbformat == 4 and notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None)
    for text in ("/content/", "@param"):  # nothing that only a Colab has
        assert text not in FILE.read_text()


@pytest.fixture
def kernel(tmp_path, monkeypatch) -> str:
    """The name of a kernel that is this very Python."""
    (tmp_path / "kernels/tested").mkdir(parents=True)
    started = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "tested",
        "language": "python",
    }
    (tmp_path / "kernels/tested/kernel.json").write_text(json.dumps(started))
    for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    assert "tested" in KernelSpecManager().find_kernel_specs()
    return "tested"


def executed(kernel: str, folder: pathlib.Path):
    notebook = nbformat.read(FILE, as_version=4)
    where = {"metadata": {"path": folder}}
    client = nbclient.NotebookClient(notebook, kernel_name=kernel, timeout=600, resources=where)
    asyncio.run(client.async_execute())
    return {cell.id: cell.get("outputs", []) for cell in notebook.cells}


def printed(outputs) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_it_runs_from_top_to_bottom(kernel, tmp_path, monkeypatch):
    cache = f"--config.data.cache_dir={tmp_path}/cache"
    settings = [*(f"--config.{name}={value}" for name, value in SMALL.items()), cache]
    for name, value in {
        "SEEDS": "2",
        "METHODS": "uniform,popularity",
        "SETTINGS": " ".join(settings),
        "WORKDIR": str(tmp_path / "work"),
    }.items():
        monkeypatch.setenv(f"JAXNEG_{name}", value)
    for proxy in ("http_proxy", "https_proxy"):  # whoever asks for the network fails at once
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    outputs = executed(kernel, ROOT / "launch")
    assert "jax " in printed(outputs["install"])
    assert "adaptive_mixed" in printed(outputs["one_run"])
    assert "2 of 2 runs are finished" in printed(outputs["all_runs"])
    shown = [output.data for output in outputs["pictures"]]
    pictures = [data for data in shown if "image/png" in data]
    assert len(pictures) == len(list((tmp_path / "work/study").glob("*.png"))) >= 4
    text = "".join(data["text/markdown"] for data in shown if "text/markdown" in data)
    assert "popularity" in text and "![" not in text
    assert set(os.listdir(tmp_path / "work/study/quickstart")) == {"popularity", "uniform"}


def test_outside_a_clone_it_asks_for_the_address(kernel, tmp_path, monkeypatch):
    monkeypatch.delenv("JAXNEG_REPOSITORY", raising=False)
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="set REPOSITORY above"):
        executed(kernel, tmp_path)
