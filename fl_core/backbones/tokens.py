"""Tokenizers of CLIP-like models: found, saved beside the weights, and asked for class names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fl_core.backbones.prompt_plan import NameTokens
from fl_core.errors import ConfigError


def save_tokenizer(model: str, text_cfg: Mapping[str, Any], local_only: bool, to: Path) -> Any:
    """Describe the tokenizer of an open_clip model, and write its files to ``to`` if it has any.

    local_only: use no network; a tokenizer that is not on this machine is then recorded as missing
    and only an error when text is to be tokenised.
    """
    kwargs = dict(text_cfg.get("tokenizer_kwargs") or {})
    facts = {"context_length": text_cfg.get("context_length", 77), "kwargs": kwargs}
    if not text_cfg.get("hf_tokenizer_name"):
        return {"kind": "simple", **facts}
    if text_cfg.get("tokenizer_mode"):
        raise ConfigError(
            f"tokenizer_mode {text_cfg['tokenizer_mode']!r} puts tokens after the padding, which "
            "prompt layouts do not support: use a model with a plain tokenizer"
        )
    import open_clip

    offline = {"local_files_only": True} if local_only else {}
    try:
        open_clip.get_tokenizer(model, **offline).save_pretrained(str(to))
    except (OSError, ValueError) as error:
        if not local_only:
            raise ConfigError(f"no tokenizer for model {model!r}: {error}") from error
        return {"kind": "missing", "name": text_cfg["hf_tokenizer_name"], **facts}
    return {"kind": "hf", **facts}


def load_tokenizer(facts: Mapping[str, Any], folder: Path) -> Any:
    """The open_clip tokenizer that ``save_tokenizer`` described."""
    from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

    if facts["kind"] == "missing":
        raise ConfigError(
            f"the tokenizer {facts['name']!r} was not on this machine when the model was prepared "
            "without network: load it once with transformers, delete the prepared folder, try again"
        )
    if facts["kind"] == "simple":
        return SimpleTokenizer(context_length=facts["context_length"], **facts["kwargs"])
    return HFTokenizer(str(folder), context_length=facts["context_length"], **facts["kwargs"])


def word_ids(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text alone, however long, without special tokens."""
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:
        return list(tokenizer.encode(text))
    return list(inner(tokenizer.clean_fn(text), add_special_tokens=False).input_ids)


def name_tokens(tokenizer: Any, classes: Sequence[str]) -> NameTokens:
    """Class names with their period, and the special tokens that the tokenizer puts around."""
    texts = [name.replace("_", " ").strip() for name in classes]
    (filler,) = word_ids(tokenizer, "x")[-1:]
    row = [int(token) for token in tokenizer(["x"])[0]]
    at = len(row) - 1 - row[::-1].index(filler)
    inner = getattr(tokenizer, "tokenizer", None)
    pad = 0 if inner is None else int(inner.pad_token_id)
    after = row[at + 1 :]
    while len(after) > 1 and after[-1] == pad:
        after.pop()
    return NameTokens(
        texts=tuple(texts),
        ids=tuple(tuple(word_ids(tokenizer, f"{text}.")) for text in texts),
        lengths=tuple(len(word_ids(tokenizer, text)) for text in texts),
        bos=tuple(row[: at + 1 - len(word_ids(tokenizer, "x"))]),
        eos=tuple(after),
        pad=pad,
        filler=filler,
    )
