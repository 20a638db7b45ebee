"""Writes tests/models/reference_hstu.npz: HSTU in torch, pair by pair, for `jaxneg.models.hstu`."""

import math
import pathlib

import numpy as np
import torch
from torch import nn
from torch.nn import functional

FOLDER = pathlib.Path(__file__).parents[1] / "tests" / "models"
WIDTH, HEADS, LENGTH, NUM_ITEMS, TEMPERATURE = 8, 2, 6, 5, 0.05


class Block(nn.Module):
    """One block on one sequence without pads, by the paper's equations 1 to 3."""

    def __init__(self):
        super().__init__()
        self.projected = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.output = nn.Linear(WIDTH, WIDTH)
        self.position_bias = nn.Parameter(torch.randn(LENGTH))
        self.time_bias = nn.Parameter(torch.randn(72))

    def forward(self, x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        normed = functional.layer_norm(x, (WIDTH,), eps=1e-6)
        gate, query, key, value = functional.silu(self.projected(normed)).chunk(4, dim=-1)
        attended = torch.zeros_like(x)
        for head in torch.arange(WIDTH).chunk(HEADS):
            for i in range(len(x)):
                for j in range(i + 1):
                    passed = max(1, abs(int(times[i + 1]) - int(times[j])))
                    bias = self.position_bias[i - j] + self.time_bias[int(math.log(passed) / 0.301)]
                    weight = functional.silu(query[i, head] @ key[j, head] + bias) / LENGTH
                    attended[i, head] += weight * value[j, head]
        return x + self.output(functional.layer_norm(attended, (WIDTH,), eps=1e-6) * gate)


class HSTU(nn.Module):
    """Two blocks on an embedded sequence, whose positions end with the last one."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(LENGTH, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, embedded: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        x = embedded * math.sqrt(WIDTH) + self.positions[-len(embedded) :]
        for block in self.blocks:
            x = block(x, times)
        return x


if __name__ == "__main__":
    torch.manual_seed(0)
    model = HSTU()
    is_item = torch.arange(LENGTH)[None] >= torch.tensor([0, 2])[:, None]
    times = torch.cumsum(torch.tensor([[0, 5, 90, 4000, 1, 90000, 700], [0, 0, 10, 30, 2, 10**7, 60]]), 1)
    embedded, items, states = (
        torch.randn(2, LENGTH, WIDTH),
        torch.randn(NUM_ITEMS, WIDTH),
        torch.zeros(2, LENGTH, WIDTH),
    )
    with torch.no_grad():
        for row, length in ((0, 6), (1, 4)):
            states[row, -length:] = model(embedded[row, -length:], times[row, -length - 1 :])
        scores = functional.cosine_similarity(states[:, :, None], items[None, None], dim=-1) / TEMPERATURE
    arrays = model.state_dict() | {"is_item": is_item, "times": times, "embedded": embedded}
    arrays |= {"items": items, "states": states, "scores": scores}
    np.savez_compressed(FOLDER / "reference_hstu.npz", **{name: array.numpy() for name, array in arrays.items()})
