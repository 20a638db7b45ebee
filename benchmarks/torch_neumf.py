"""Writes tests/models/reference_neumf.npz: scores of NeuMF in torch, which `jaxneg.models.neumf` has to give too."""

import pathlib

import numpy as np
import torch
from torch import nn

FOLDER = pathlib.Path(__file__).parents[1] / "tests" / "models"
NUM_USERS, NUM_ITEMS, GMF_WIDTH, LAYERS = 4, 7, 4, (12, 8, 6, 4)


class NeuMF(nn.Module):
    """Four embeddings, a product, an MLP, and a linear layer on both."""

    def __init__(self):
        super().__init__()
        self.gmf_user, self.gmf_item = (nn.Parameter(torch.randn(n, GMF_WIDTH)) for n in (NUM_USERS, NUM_ITEMS))
        self.mlp_user, self.mlp_item = (nn.Parameter(torch.randn(n, LAYERS[0] // 2)) for n in (NUM_USERS, NUM_ITEMS))
        pairs = zip(LAYERS, LAYERS[1:], strict=False)
        self.mlp = nn.Sequential(*(layer for sizes in pairs for layer in (nn.Linear(*sizes), nn.ReLU())))
        self.output = nn.Linear(GMF_WIDTH + LAYERS[-1], 1)

    def forward(self, user: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        product = self.gmf_user[user] * self.gmf_item[item]
        deep = self.mlp(torch.cat([self.mlp_user[user], self.mlp_item[item]], dim=-1))
        return self.output(torch.cat([product, deep], dim=-1))[..., 0]


if __name__ == "__main__":
    torch.manual_seed(0)
    model = NeuMF()
    users, items = torch.arange(NUM_USERS), torch.arange(NUM_ITEMS)
    with torch.no_grad():
        pairs = torch.cartesian_prod(users, items)
        scores = model(pairs[:, 0], pairs[:, 1]).reshape(NUM_USERS, NUM_ITEMS)
    arrays = model.state_dict() | {"scores": scores}
    np.savez_compressed(FOLDER / "reference_neumf.npz", **{name: array.numpy() for name, array in arrays.items()})
