"""Writes tests/models/reference_bert4rec.npz: states of torch's encoder, which `jaxneg.models.bert4rec` has to give."""

import pathlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional

FOLDER = pathlib.Path(__file__).parents[1] / "tests" / "models"
WIDTH, HEADS, LENGTH, EPSILON = 4, 2, 6, 1e-12


class BERT4Rec(nn.Module):
    """Two post-norm layers between the normalised embedding and the projection."""

    def __init__(self):
        super().__init__()
        self.positions, self.mask = nn.Parameter(torch.randn(LENGTH, WIDTH)), nn.Parameter(torch.randn(WIDTH))
        self.embedding_norm, self.projection_norm = (nn.LayerNorm(WIDTH, eps=EPSILON) for _ in range(2))
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", EPSILON, batch_first=True, norm_first=False
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.projection = nn.Linear(WIDTH, WIDTH)

    def forward(self, inputs: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        x = torch.where((inputs == -1)[..., None], self.mask, embedded) + self.positions
        x = self.encoder(self.embedding_norm(x), src_key_padding_mask=inputs == 0)
        return self.projection_norm(functional.gelu(self.projection(x)))


if __name__ == "__main__":
    torch.manual_seed(0)
    model = BERT4Rec()
    inputs = torch.tensor([[1, 1, -1, 1, 1, -1], [0, 0, 1, -1, 1, -1]])
    with torch.no_grad():
        for value in model.parameters():
            value += 0.2 * torch.randn_like(value)  # away from 0 and 1
        embedded = torch.randn(*inputs.shape, WIDTH)
        arrays = model.state_dict() | {"inputs": inputs, "embedded": embedded, "states": model(inputs, embedded)}
    np.savez_compressed(FOLDER / "reference_bert4rec.npz", **{name: array.numpy() for name, array in arrays.items()})
