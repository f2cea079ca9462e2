"""The names under which tensors stand in a state: the model's own, personal ones, a rule's."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fl_core.types import Params, Scope

PERSONAL = "personal."
STARTED = "started"
"""In a private state: above 0 once the client has made its personal tensors; not there where they
were given to it, as the mean of others' is to a newcomer."""


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


def not_started(params: Params) -> Params:
    """The private state of a client whose personal tensors are yet to be made."""
    some = next(iter(params.values()))
    return as_personal(params) | {STARTED: torch.zeros_like(some.flatten()[0])}


def started(state: Params, num_steps: Tensor) -> Params:
    """The mark of a client that had this state, and has taken so many steps (a scalar)."""
    mark = state[STARTED]
    return {STARTED: torch.where(num_steps > 0, torch.ones_like(mark), mark)}


def own_or(others: Params, state: Params) -> Params:
    """The personal tensors of a state; those of ``others`` where a client has made none yet."""
    held = personal_part(state)
    if STARTED not in state:
        return held
    return where(state[STARTED] > 0, held, {name: others[name] for name in held})


def with_scope(params: Params, scopes: Mapping[str, Scope], *wanted: Scope) -> Params:
    """The tensors whose scope is one of ``wanted``."""
    return {name: tensor for name, tensor in params.items() if scopes[name] in wanted}


def where(condition: Tensor, new: Params, old: Params) -> Params:
    """The tensors of ``new`` where the scalar condition holds, those of ``old`` elsewhere."""
    return {name: torch.where(condition, new[name], old[name]) for name in new}
