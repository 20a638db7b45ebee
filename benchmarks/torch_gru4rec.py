"""Writes tests/models/reference_gru4rec.npz: states of torch.nn.GRU, which `jaxneg.models.gru4rec` has to give too."""

import pathlib

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parents[1] / "tests" / "models"

if __name__ == "__main__":
    torch.manual_seed(0)
    gru = torch.nn.GRU(8, 8, num_layers=2, batch_first=True)
    embedded = torch.randn(3, 6, 8)
    with torch.no_grad():
        arrays = dict(gru.state_dict()) | {"embedded": embedded, "states": gru(embedded)[0]}
    np.savez_compressed(FOLDER / "reference_gru4rec.npz", **{name: array.numpy() for name, array in arrays.items()})
