"""Writes tests/models/reference_ligr.npz: states of LiGR in torch, which `jaxneg.models.ligr` has to give too."""

import pathlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional

FOLDER = pathlib.Path(__file__).parents[1] / "tests" / "models"
WIDTH, HEADS, LENGTH, EXPANSION = 4, 2, 6, 4


class Block(nn.Module):
    """One LiGR block (arXiv 2502.03417, section 3)."""

    def __init__(self):
        super().__init__()
        self.attention_norm, self.ffn_norm = nn.LayerNorm(WIDTH, eps=1e-8), nn.LayerNorm(WIDTH, eps=1e-8)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.attention_gate, self.ffn_gate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.ffn_silu, self.ffn_linear = (nn.Linear(WIDTH, EXPANSION * WIDTH, bias=False) for _ in range(2))
        self.ffn_output = nn.Linear(EXPANSION * WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor, forbidden: torch.Tensor) -> torch.Tensor:
        normed = self.attention_norm(x)
        attended, _ = self.attention(normed, normed, normed, attn_mask=forbidden, need_weights=False)
        x = x + torch.sigmoid(self.attention_gate(x)) * attended
        normed = self.ffn_norm(x)
        inner = functional.silu(self.ffn_silu(normed)) * self.ffn_linear(normed)
        return x + torch.sigmoid(self.ffn_gate(x)) * self.ffn_output(inner)


class LiGR(nn.Module):
    """Two blocks on embedded items."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.final_norm = nn.LayerNorm(WIDTH, eps=1e-8)

    def forward(self, embedded: torch.Tensor, is_item: torch.Tensor) -> torch.Tensor:
        allowed = is_item[:, None] & torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        allowed |= ~allowed.any(-1, keepdim=True)  # a pad may look at all, so that nothing is NaN
        x = embedded + self.positions
        for block in self.blocks:
            x = block(x, ~allowed.repeat_interleave(HEADS, 0))
        return self.final_norm(x)


if __name__ == "__main__":
    torch.manual_seed(0)
    model = LiGR()
    is_item = torch.arange(LENGTH)[None] >= torch.tensor([0, 2])[:, None]
    with torch.no_grad():
        for value in model.parameters():
            value += 0.2 * torch.randn_like(value)  # away from 0 and 1
        embedded = torch.randn(2, LENGTH, WIDTH)
        arrays = model.state_dict() | {"embedded": embedded, "is_item": is_item, "states": model(embedded, is_item)}
    np.savez_compressed(FOLDER / "reference_ligr.npz", **{name: array.numpy() for name, array in arrays.items()})
