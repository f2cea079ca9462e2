"""A language model as a function of adapters: the unmodified module, called with other tensors.

Its linear layers are wrapped so that low-rank factors can be handed in by name, which
``torch.func.functional_call`` does under any transform; so clients can be a batch dimension.
Attention masks are given ready-made in four dimensions, which transformers leaves as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_core.backbones.language import Language
from fl_core.backbones.language_front import PREFIX, past_of, see_front, with_prompt
from fl_core.backbones.language_layers import HELD, PROMPT, Adapted, Prompted, Skipped, Stored
from fl_core.backbones.token_rows import PADDING
from fl_core.errors import ConfigError
from fl_core.types import Params


@dataclass(frozen=True)
class Adapter:
    """One place of an adapter: the module's path, as peft names it, and the layer's widths.

    before: whether what is trained acts on the layer's inputs alone (IA3).
    """

    path: str
    d_in: int
    d_out: int
    before: bool = False


@dataclass(frozen=True)
class Tower:
    """A frozen model with places for adapters.

    body: the model without its output layer; prefix: what paths have before those within it.
    stored_at: the path of the layer in whose place stored states come in, if there is one.
    prompted_at: the path of the word embeddings, where a prompt can take their place.
    """

    body: nn.Module
    output: nn.Module | None
    prefix: str
    places: tuple[Adapter, ...]
    causal: bool
    pad_id: int
    dtype: torch.dtype
    stored_at: str | None = None
    prompted_at: str | None = None

    def __call__(
        self,
        params: Params,
        ids: Tensor,
        allowed: Tensor,
        positions: Tensor | None = None,
        states: Tensor | None = None,
        *,
        past: Any = None,
    ) -> Tensor:
        """Hidden states [B, L, d] of token ids [B, L].

        allowed: bool [B, L, L], which tokens (last axis) each token sees. positions: [B, L], None
        to count from the left. states: [B, L, d] of the layer below the first that is computed.
        A ``prompt`` [P, d] and a ``prefix`` [P, 2 layers, h, d_h] among params come before the
        texts, and are not among the states. past: of ``open_past``, what stands before the tokens;
        they are added to it, and ``allowed`` is [B, L, past + L].
        """
        held = {n.removeprefix(self.prefix): t for n, t in params.items() if self._is_held(n)}
        if self.stored_at is not None:
            assert states is not None  # the learner asks for them among its inputs
            held[f"{self.stored_at}.states"] = states.to(self.dtype)
        tokens = torch.where(ids == PADDING, self.pad_id, ids).long()
        named: dict[str, Any] = {"use_cache": False} if self.causal else {}
        num_prompt = 0
        if (prompt := params.get(PROMPT)) is not None:
            held[f"{self.prompted_at}.{PROMPT}"], num_prompt = prompt, len(prompt)
            allowed, positions = with_prompt(allowed, positions, num_prompt, self.causal)
            # Any token stands in for a prompt's, save padding, of which some models count none.
            tokens = F.pad(tokens, (num_prompt, 0), value=int(self.pad_id == 0))
        if (prefix := params.get(PREFIX)) is not None:
            past = past_of(prefix, len(ids), self.dtype) if past is None else past
            allowed = see_front(allowed, len(prefix))
            positions = None if positions is None else positions + len(prefix)
        named |= {} if past is None else {"past_key_values": past}
        named["attention_mask"] = self._mask(allowed)
        named |= {} if positions is None else {"position_ids": positions}
        out: Any = torch.func.functional_call(self.body, held, (tokens,), named)
        hidden: Tensor = out.last_hidden_state
        return hidden[:, num_prompt:]

    def open_past(self, params: Params, batch: int) -> Any:
        """Where the keys and values of ``batch`` texts are kept; a prefix's stand in it first."""
        from transformers import DynamicCache

        prefix = params.get(PREFIX)
        return DynamicCache() if prefix is None else past_of(prefix, batch, self.dtype)

    def _mask(self, allowed: Tensor) -> Tensor:
        # Not -inf: padding may see nothing at all. Some models take the softmax in float32.
        lowest = max(torch.finfo(self.dtype).min, torch.finfo(torch.float32).min)
        mask = torch.zeros(allowed.shape, dtype=self.dtype, device=allowed.device)
        return torch.where(allowed, mask, lowest).unsqueeze(-3)  # [B, 1, L, L]

    def words(self) -> Tensor:
        """The frozen embeddings of all words, [V, d]."""
        table: Any = self.body.get_input_embeddings()  # type: ignore[operator]
        words: Any = table.layer if isinstance(table, Prompted) else table
        weight: Tensor = words.weight
        return weight

    @property
    def device(self) -> torch.device:
        return next(self.body.parameters()).device

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token [..., V] from hidden states [..., d], in float32 or wider."""
        assert self.output is not None  # only causal models are asked
        logits: Tensor = self.output(hidden)
        return logits.float() if logits.dtype == torch.bfloat16 else logits

    def log_probs(self, hidden: Tensor) -> Tensor:
        """log p of the next token [..., V] from hidden states [..., d], in float32 or wider."""
        return torch.log_softmax(self.logits(hidden), dim=-1)

    def _is_held(self, name: str) -> bool:
        return name.rpartition(".")[2] in HELD


def build_tower(
    backbone: Language,
    modules: Sequence[str],
    scale: float = 1.0,
    *,
    dropout: float = 0.0,
    top_layers: int | None = None,
    prompted: bool = False,
) -> Tower:
    """The tower with places for adapters in all linear layers whose path ends in one of
    ``modules``, or in those of the top layers; then the layers below are left out.

    prompted: whether it takes a prompt.
    """
    module = backbone.build()
    body, prefix = body_of(module, backbone.causal)
    layers_path, layers = layers_of(body, backbone.num_layers)
    stored_at, first = None, 0
    if top_layers is not None:
        first = first_layer(backbone, top_layers)
        stored_at = _leave_out(body, layers_path, layers, first)
    places = []
    for path, layer in list(body.named_modules()):
        if not any(path == name or path.endswith(f".{name}") for name in modules):
            continue
        if _layer_number(path, layers_path) < first:
            continue
        places.append(Adapter(prefix + path, *_widths(layer, path)))
        owner, _, leaf = path.rpartition(".")
        setattr(body.get_submodule(owner), leaf, Adapted(layer, prefix + path, scale, dropout))
    if modules and not places:
        raise ConfigError(
            f"learner.modules = {', '.join(modules)}: no module of the model has such a name. "
            f"Its linear layers are {', '.join(_linear_names(body))}."
        )
    output = module.get_output_embeddings() if backbone.causal else None  # type: ignore[operator]
    return Tower(
        body,
        output,
        prefix,
        tuple(places),
        backbone.causal,
        int(backbone.info["pad_id"]),
        backbone.dtype,
        stored_at,
        _open_for_prompts(body) if prompted else None,
    )


def reading(valid: Tensor, causal: bool) -> tuple[Tensor, Tensor | None]:
    """Which tokens each token of plain texts sees, [B, L, L], and where it stands, [B, L].

    valid: bool [B, L], false at padding.
    """
    seen = valid.unsqueeze(-2).expand(*valid.shape, valid.shape[-1])
    if not causal:
        return seen, None
    order = torch.arange(valid.shape[-1], device=valid.device)
    positions = (valid.long().cumsum(-1) - 1).clamp(min=0)
    return seen & (order.unsqueeze(0) <= order.unsqueeze(1)), positions


def body_of(module: nn.Module, causal: bool) -> tuple[nn.Module, str]:
    """A model without its output layer, and what paths have before those within it."""
    body: nn.Module = module.base_model if causal else module  # type: ignore[assignment]
    prefix = next(name for name, part in module.named_modules() if part is body)
    return body, f"{prefix}." if prefix else ""


def _open_for_prompts(body: nn.Module) -> str:
    words = body.get_input_embeddings()  # type: ignore[operator]
    path: str = next(name for name, part in body.named_modules() if part is words)
    owner, _, leaf = path.rpartition(".")
    setattr(body.get_submodule(owner), leaf, Prompted(words))
    return path


def layers_of(body: nn.Module, num_layers: int) -> tuple[str, nn.ModuleList]:
    """Path and list of a body's layers; ConfigError where it has no list of them."""
    for path, part in body.named_modules():
        if isinstance(part, nn.ModuleList) and len(part) == num_layers:
            return path, part
    kind = f"model {type(body).__name__} has no list of its {num_layers} layers, "
    raise ConfigError(f"{kind}as where all are one. Choose another backbone.model.")


def _layer_number(path: str, layers_path: str) -> int:
    """Of the layer that a module lies in; -1 where it lies in none."""
    if not path.startswith(f"{layers_path}."):
        return -1
    return int(path.removeprefix(f"{layers_path}.").split(".")[0])


def first_layer(backbone: Language, top_layers: int) -> int:
    """The number of the lowest of the top layers; ConfigError where none would be below it."""
    first = backbone.num_layers - top_layers
    if first < 1:
        raise ConfigError(
            f"learner.top_layers = {top_layers} is not allowed: the model has "
            f"{backbone.num_layers} layers, so it must be 1 to {backbone.num_layers - 1}, or null."
        )
    return first


def _leave_out(body: nn.Module, path: str, layers: nn.ModuleList, first: int) -> str:
    in_tuple = puts_out_a_tuple(body, layers)
    for place in range(first):
        layers[place] = (Stored if place == first - 1 else Skipped)(in_tuple)
    return f"{path}.{first - 1}"


def puts_out_a_tuple(body: nn.Module, layers: nn.ModuleList) -> bool:
    """Whether a layer does; asked with one token, as transformers moves to plain tensors."""
    caught: list[bool] = []
    hook = layers[0].register_forward_hook(lambda m, x, out: caught.append(isinstance(out, tuple)))
    with torch.no_grad():
        body(torch.zeros(1, 1, dtype=torch.int64, device=next(body.parameters()).device))
    hook.remove()
    return caught[0]


def _widths(layer: nn.Module, path: str) -> tuple[int, int]:
    weight = getattr(layer, "weight", None)
    if type(layer).__name__ == "Conv1D" and weight is not None:  # GPT-2's: stored transposed
        return int(weight.shape[0]), int(weight.shape[1])
    found = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    if not all(isinstance(width, int) for width in found):
        raise ConfigError(
            f"learner.modules: {path} is a {type(layer).__name__}; adapters need a linear layer."
        )
    return int(found[0]), int(found[1])  # type: ignore[arg-type]


def _linear_names(body: nn.Module) -> list[str]:
    found = [path for path, part in body.named_modules() if isinstance(part, nn.Linear)]
    return sorted({path.rpartition(".")[2] for path in found})
