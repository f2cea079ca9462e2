"""The names under which tensors stand in a state: the model's own, personal ones, a rule's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fl_core.types import Params, Scope

PERSONAL = "personal."


def personal_part(state: Params) -> Params:
    """The personal tensors of a client's private state, under their own names."""
    return {n.removeprefix(PERSONAL): t for n, t in state.items() if n.startswith(PERSONAL)}


def kept(tensors: Params, rule: str) -> Params:
    """What a rule keeps in a state under ``<rule>.<name>``, by ``<name>``."""
    start = f"{rule}."
    return {n.removeprefix(start): t for n, t in tensors.items() if n.startswith(start)}


def as_kept(tensors: Params, rule: str) -> Params:
    """Tensors named as a rule keeps them in a state."""
    return {f"{rule}.{name}": tensor for name, tensor in tensors.items()}


def model_part(tensors: Params, rule: str) -> Params:
    """The model's own tensors of a state, without what the rule keeps there."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{rule}.")}


def as_personal(params: Params) -> Params:
    """Tensors named as they stand in a client's private state."""
    return {PERSONAL + name: tensor for name, tensor in params.items()}


def with_scope(params: Params, scopes: Mapping[str, Scope], *wanted: Scope) -> Params:
    """The tensors whose scope is one of ``wanted``."""
    return {name: tensor for name, tensor in params.items() if scopes[name] in wanted}


def where(condition: Tensor, new: Params, old: Params) -> Params:
    """The tensors of ``new`` where the scalar condition holds, those of ``old`` elsewhere."""
    return {name: torch.where(condition, new[name], old[name]) for name in new}
