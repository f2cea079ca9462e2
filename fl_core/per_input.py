"""Personal models that are another one for each input, by how near it is to the client's own.

Nearness is read off stored features of the frozen backbone, so it costs no pass. A client's own
examples are drawn by name, once for the whole run; neither they nor their features leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.seeds import generator
from fl_core.types import Params, TensorSpec

if TYPE_CHECKING:
    from fl_core.local import Problem

CENTRE = "per_input.centre"
"""Among a client's parameters: the mean unit vector [d] of its reference examples."""

Fit = Callable[[Params, Params], Params]
"""The parameters for one input, from a client's and the input's stored features (no batch axis)."""


class PerInput(NamedTuple):
    """What a rule asks for whose personal model depends on the input.

    kind: of the stored input [N, d] by which inputs are compared. num_references: of the client's
    training examples. model: the parameters for one input, from the client's (with ``CENTRE``), and
    the input's features [d].
    """

    kind: str
    num_references: int
    model: Callable[[Params, Tensor, Mapping[str, TensorSpec]], Params]

    def fit(self, specs: Mapping[str, TensorSpec]) -> Fit:
        return lambda params, inputs: self.model(params, inputs[self.kind], specs)


def centre_of(problem: Problem, wanted: PerInput, rows: Tensor, draws: torch.Generator) -> Tensor:
    """The centre [d] of some of a client's training rows [n]; 0 where it has none.

    The inner product of a unit vector with it is the mean cosine to the references.
    """
    values = problem.inputs[wanted.kind]
    chosen = rows[torch.randperm(len(rows), generator=draws)[: wanted.num_references]]
    if not len(chosen):
        return torch.zeros_like(values[0])
    return F.normalize(values[chosen.to(values.device)], dim=-1).mean(dim=0)


def reference_draws(seed: int, client: int) -> torch.Generator:
    """Of the run and the client alone, so that a client keeps its references."""
    return generator(seed, "reference examples", client)


def mean_cosine(features: Tensor, centre: Tensor) -> Tensor:
    """Mean cosine of an input's features [d] to those behind a centre [d], a scalar."""
    return F.normalize(features, dim=-1) @ centre
