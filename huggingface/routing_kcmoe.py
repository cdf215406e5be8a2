# SPDX-License-Identifier: Apache-2.0
"""The router of Kc-MoE for transformers: its choices, and the losses that keep experts in use.

This file is copied beside the weights of an exported model. The losses are T5X's and Flaxformer's, with their
groups of tokens, so that training here goes on as it did there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .configuration_kcmoe import KcMoeConfig


class KcMoeRouter(nn.Module):
    """Logits of the experts, in float32 whatever the dtype of the model."""

    def __init__(self, config: KcMoeConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.num_experts, config.d_model))

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> float32[N, E]."""
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.float(), self.weight.float())


def choose(probs: Tensor, num_selected: int) -> tuple[Tensor, Tensor]:
    """The largest probabilities and their experts, of equal ones the first: [..., E] -> two [..., A]."""
    found = probs.sort(dim=-1, descending=True, stable=True)
    return found.values[..., :num_selected], found.indices[..., :num_selected]


class RouterReport:
    """Router logits of one forward pass in the order of its sparse layers, and the losses made from them."""

    def __init__(self, config: KcMoeConfig):
        self._config = config
        self._gradients = torch.is_grad_enabled()
        self.logits: dict[bool, list[Tensor]] = {False: [], True: []}  # encoder, decoder

    def add(self, is_decoder: bool, logits: Tensor) -> None:
        """Notes the logits of one layer, float32[B, L, E].

        Raises:
          RuntimeError: if they carry no gradient where one is computed, as under re-entrant checkpointing.
        """
        if torch.is_grad_enabled() != self._gradients:
            raise RuntimeError(
                "the routers' losses need gradient checkpointing with use_reentrant=False; "
                "output_router_logits=False does without them"
            )
        self.logits[is_decoder].append(logits)

    def _losses(self, is_decoder: bool) -> list[tuple[Tensor, Tensor]]:
        # Not sooner: what a checkpointed block computes must be the same when it is computed again.
        return [router_losses(logits, self._config) for logits in self.logits[is_decoder]]

    def loss(self) -> Tensor | float:
        """Weighted sum of both losses, each the mean over all sparse layers; 0 if there are none."""
        found = self._losses(False) + self._losses(True)
        if not found:
            return 0.0
        balance, z = (torch.stack(values).mean() for values in zip(*found, strict=True))
        config = self._config
        return config.router_aux_loss_coef * balance + config.router_z_loss_coef * z

    def fields(self) -> dict[str, Any]:
        """The fields of Seq2SeqMoEOutput; losses are means over the layers of a stack, not weighted."""
        found: dict[str, Any] = {}
        for is_decoder, stack in ((False, "encoder"), (True, "decoder")):
            if self.logits[is_decoder]:
                balance, z = zip(*self._losses(is_decoder), strict=True)
                found[f"{stack}_router_logits"] = tuple(self.logits[is_decoder])
                found[f"{stack}_aux_loss"] = torch.stack(balance).mean()
                found[f"{stack}_z_loss"] = torch.stack(z).mean()
        return found


_report: ContextVar[RouterReport | None] = ContextVar("router_report", default=None)


@contextlib.contextmanager
def report_routers(config: KcMoeConfig, wanted: bool) -> Iterator[RouterReport]:
    """While it lasts, sparse layers tell the report given what their routers say, if it is `wanted`."""
    report = RouterReport(config)
    token = _report.set(report if wanted else None)
    try:
        yield report
    finally:
        _report.reset(token)


def tell(is_decoder: bool, logits: Tensor) -> None:
    """Adds the logits of one layer to the report that is being made, if any."""
    if (report := _report.get()) is not None:
        report.add(is_decoder, logits)


def router_losses(logits: Tensor, config: KcMoeConfig) -> tuple[Tensor, Tensor]:
    """Load balance loss (arXiv:2101.03961, eq. 4-6, of all choices) and z-loss (arXiv:2202.08906, eq. 5).

    float32[B, L, E] -> two scalars. Both are means over groups of tokens, cut as Flaxformer's MoeLayer cuts
    them: batch or length is padded until the tokens divide by the experts.
    """
    batch, length, experts = logits.shape
    copies = experts * config.num_expert_replicas
    rows, columns = (
        next(n for n in range(copies + 1) if (batch + n) * length % copies == 0),
        next(n for n in range(copies + 1) if batch * (length + n) % copies == 0),
    )
    padding = (0, 0, 0, 0, 0, rows) if columns * batch > rows * length else (0, 0, 0, columns)
    logits = F.pad(logits, padding).reshape(-1, experts)
    tokens = logits.shape[0]
    groups = max(tokens // config.router_group_size, copies)
    while groups < tokens and (tokens % groups or groups % copies):
        groups += 1
    logits = logits.view(groups, -1, experts)
    probs = logits.softmax(dim=-1)
    chosen = choose(probs, config.num_experts_per_tok)[1]
    share = F.one_hot(chosen, experts).sum(dim=2).to(probs.dtype).mean(dim=1)
    balance = (share * probs.mean(dim=1)).mean() * experts**2
    return balance, logits.logsumexp(dim=-1).square().mean()
