"""SASRec in PyTorch, for comparison only: the shapes, the dropout sites and the loss of `jaxneg.models.sasrec`."""

import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
    """One block: normalised queries, un-normalised keys and values, residuals of the normalised input."""

    def __init__(self, width: int, heads: int, rate: float):
        super().__init__()
        self.heads, self.rate = heads, rate
        self.attention_norm = nn.LayerNorm(width, eps=1e-8)
        self.ffn_norm = nn.LayerNorm(width, eps=1e-8)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        normed = self.attention_norm(x)
        query, key, value = (
            layer(part).view(batch, length, self.heads, -1).transpose(1, 2)
            for layer, part in ((self.query, normed), (self.key, x), (self.value, x))
        )
        rate = self.rate if self.training else 0.0
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=rate)
        x = normed + attended.transpose(1, 2).reshape(batch, length, width)
        normed = self.ffn_norm(x)
        inner = functional.dropout(functional.relu(self.inner(normed)), self.rate, self.training)
        return normed + functional.dropout(self.outer(inner), self.rate, self.training)


class SASRec(nn.Module):
    """Item table, positions, blocks; the mean BCE of a batch."""

    def __init__(self, num_items: int, length: int, width: int, blocks: int, heads: int, rate: float):
        super().__init__()
        self.items = nn.Embedding(num_items + 1, width, padding_idx=0)
        self.positions = nn.Parameter(torch.empty(length, width))
        nn.init.xavier_uniform_(self.items.weight)
        nn.init.xavier_uniform_(self.positions)
        self.blocks = nn.ModuleList(Block(width, heads, rate) for _ in range(blocks))
        self.final_norm = nn.LayerNorm(width, eps=1e-8)
        self.rate = rate
        self.register_buffer("causal", torch.ones(length, length, dtype=torch.bool).tril())

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor, negatives: torch.Tensor) -> torch.Tensor:
        is_item = (inputs > 0).unsqueeze(-1)
        # A row with no key left may look at all: no NaN, and what it gives is zeroed.
        allowed = self.causal & (inputs > 0)[:, None, :]
        allowed = (allowed | ~allowed.any(-1, keepdim=True)).unsqueeze(1)
        x = self.items(inputs) * math.sqrt(self.items.embedding_dim) + self.positions
        x = functional.dropout(x, self.rate, self.training) * is_item
        for block in self.blocks:
            x = block(x, allowed) * is_item
        hidden = self.final_norm(x)
        positive = (hidden * self.items(targets)).sum(-1)
        negative = hidden @ self.items(negatives).transpose(1, 2)
        each = functional.softplus(-positive) + functional.softplus(negative).mean(-1)
        counted = targets > 0
        return (each * counted).sum() / counted.sum().clamp(min=1)


def stepper(
    rows: np.ndarray,
    *,
    num_items: int,
    width: int,
    blocks: int,
    heads: int,
    dropout: float,
    batch: int,
    negatives: int,
    learning_rate: float,
    compiled: bool,
):
    """A call that makes one training step. `rows` [users, L + 1]: left-padded ids, the last L of them targets."""
    torch.manual_seed(0)
    rows = torch.from_numpy(rows)
    model = SASRec(num_items, rows.shape[1] - 1, width, blocks, heads, dropout).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), fused=True)
    loss_of = torch.compile(model) if compiled else model

    def step():
        chosen = rows[torch.randint(len(rows), (batch,))]
        drawn = torch.randint(1, num_items + 1, (batch, negatives))
        loss = loss_of(chosen[:, :-1], chosen[:, 1:], drawn)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step
