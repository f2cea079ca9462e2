"""Which models of transformers can be used: by their config, and by what they make of a text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fl_core.backbones.language import LanguageModel
from fl_core.backbones.language_tower import Tower, body_of, reading
from fl_core.backbones.token_rows import PADDING
from fl_core.errors import ConfigError

WIDTHS = ("hidden_size", "num_attention_heads", "num_hidden_layers")
LENGTHS = (3, 6)
CLOSE = 1e-3
"""Relative to the largest state; another order of the same sums stays far below it in fp32."""
ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What models raise on a mask that they do not expect."""


def is_causal(spec: LanguageModel, config: Any) -> bool:
    """ConfigError for what is neither an encoder nor a causal model."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    faults = []
    fills_in = type(config) in MODEL_FOR_MASKED_LM_MAPPING
    if getattr(config, "is_encoder_decoder", False):
        faults.append("it has an encoder and a decoder: choose an encoder or a causal model")
    elif not fills_in and type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        faults.append("it is no model of texts: choose an encoder or a causal one")
    missing = [name for name in WIDTHS if not isinstance(getattr(config, name, None), int)]
    if missing and not faults:
        faults.append(f"its config tells no {', '.join(missing)}, so it is no plain transformer")
    window = getattr(config, "sliding_window", None)
    if window is not None and window < spec.max_length:
        faults.append(f"its attention looks back {window} tokens only: set max_length below that")
    if any("attention" not in kind for kind in getattr(config, "layer_types", None) or ()):
        faults.append("not all of its layers are attention")
    if getattr(config, "attention_type", None) == "block_sparse":
        faults.append("its attention is block sparse: in its config.json put original_full there")
    if faults:
        raise ConfigError(f"model {spec.model!r} ({config.model_type}): {'; '.join(faults)}.")
    return not fills_in


def max_positions(model: nn.Module) -> int | None:
    """The most tokens of a text; None where the model sets no limit.

    RoBERTa and its like count positions from behind the padding's, so a few are never reached.
    """
    most = int(getattr(model.config, "max_position_embeddings", None) or 0)
    words: Any = model.get_input_embeddings()  # type: ignore[operator]
    tables = (m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words)
    fitting = (m.padding_idx for m in tables if m.num_embeddings == most)
    skipped = max((at + 1 for at in fitting if at is not None), default=0)
    return most - skipped if most > 0 else None


@torch.no_grad()
def check_mask(spec: LanguageModel, model: nn.Module, causal: bool, pad_id: int) -> None:
    """ConfigError for a model whose states of a text change where a longer one stands beside it.

    Each text is read alone by the unchanged model, and all padded under a mask of four dimensions,
    which some models do not take, and others do not heed.
    """
    body, _ = body_of(model, causal)
    tower = Tower(body, None, "", (), causal, pad_id, torch.float32)
    ids = _texts(model, pad_id, causal)  # [2, L]
    valid, fault = ids != PADDING, ""
    try:
        together = tower({}, ids, *reading(valid, causal))  # [2, L, d]
        for row, own, states in zip(ids, valid, together, strict=True):
            alone = body(row[own].unsqueeze(0)).last_hidden_state[0]
            if (alone - states[own]).abs().max() > CLOSE * alone.abs().max():
                fault = "its states of a text change where a longer one stands beside it"
    except ERRORS as error:
        fault = f"{type(error).__name__}: {error}".splitlines()[0]
    if fault:
        kind = getattr(model.config, "model_type", "of an unknown type")
        raise ConfigError(
            f"model {spec.model!r} ({kind}) cannot read texts of different "
            f"lengths as one batch under a ready-made attention mask ({fault}). Choose another, "
            "such as a BERT, RoBERTa or ELECTRA, or a GPT-2, OPT, LLaMA, Qwen or Gemma."
        )


def _texts(model: nn.Module, pad_id: int, causal: bool) -> Tensor:
    """Token ids [2, L] of a short text, padded, and a longer one."""
    num_words = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    words = [token for token in range(num_words) if token != pad_id][-sum(LENGTHS) :]
    short, long = words[: LENGTHS[0]], words[LENGTHS[0] :]
    gap = [PADDING] * (len(long) - len(short))
    return torch.tensor([gap + short if causal else short + gap, long])
