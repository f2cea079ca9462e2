"""A client's part of tensors: the first entries along each axis, where clients differ in size."""

from __future__ import annotations

import torch

from fl_core.types import Params
from fl_core.wire.codecs import Shapes


def cut(tensors: Params, shapes: Shapes) -> Params:
    """The tensors named in ``shapes``, cut to these shapes."""
    return {name: tensors[name][_corner(shape)] for name, shape in shapes.items()}


def grow(tensors: Params, shapes: Shapes) -> Params:
    """The tensors with zeros around them, in the shapes that ``shapes`` has for their names."""
    grown = {}
    for name, tensor in tensors.items():
        if tuple(tensor.shape) == shapes[name]:
            grown[name] = tensor
            continue
        grown[name] = torch.zeros(shapes[name], dtype=tensor.dtype, device=tensor.device)
        grown[name][_corner(tuple(tensor.shape))] = tensor
    return grown


def _corner(shape: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(size) for size in shape)
