"""Language models from transformers: prepared once into a folder, then memory-mapped by everyone.

``prepare_language`` runs once per machine; ``load_language`` maps what it wrote. Weights stand in a
folder of their own, so that two ways of reading texts share them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fl_core.backbones.language_module import mapped_module
from fl_core.backbones.prepared import is_complete
from fl_core.backbones.token_cache import cached_tokens
from fl_core.backbones.token_rows import (
    BELOW_TOP,
    LAST_TOKEN,
    PADDING,
    RESPONSE_IDS,
    TOKEN_IDS,
    check_rows,
)
from fl_core.checks import check_fields
from fl_core.errors import ConfigError, StateError

FORMAT = 3
NO_OUTPUT = "no_output"
"""Told of a causal model whose weights came without an output layer."""
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LanguageModel:
    """Which language model, and how it reads a text.

    model: a packaged model, a folder in transformers' format, or a name on the Hugging Face hub;
    an encoder or a causal model. pretrained: null, or "random" for weights drawn by name for the
    model's config.json, which are good for measuring time alone. quantization: of the frozen
    weights, on a GPU. max_length: tokens of a text; label words come after them. truncation: of a
    longer text the ``end`` or the ``start`` is cut off, or it is an ``error``. padding: on which
    side of a text; ``auto`` is left for causal models and right for encoders.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    name: Literal["transformers"] = "transformers"
    model: str = "minilm"
    pretrained: Literal["random"] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    quantization: Literal["none", "8bit", "4bit"] = "none"
    max_length: int = 128
    truncation: Literal["error", "end", "start"] = "error"
    padding: Literal["auto", "left", "right"] = "auto"

    def __post_init__(self) -> None:
        check_fields(self, max_length=">= 1")


def prepare_language(spec: LanguageModel, folder: Path, packaged: Mapping[str, Path]) -> Path:
    """The folder, inside ``folder``, that ``load_language`` takes; written if it is missing.

    packaged: folders of models by name, in transformers' format. Safe for any number of processes
    at once, as ``prepare_clip`` is.
    """
    _refuse_quantization(spec)
    source = packaged.get(spec.model, Path(spec.model).expanduser())
    key = folder / "by-source" / f"{_key(spec, source)}.json"
    if key.is_file():
        known = folder / str(json.loads(key.read_text())["folder"])
        if is_complete(known) and is_complete(_weights_of(known)):
            return known
    from fl_core.backbones.language_prepare import prepare

    return prepare(spec, source, folder, key, sorted(packaged))


def load_language(folder: Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Language:
    """The model of a folder that ``prepare_language`` returned.

    dtype: of its computations where it is not to be that of its weights.
    """
    if not (is_complete(folder) and is_complete(_weights_of(folder))):
        raise StateError(
            f"{folder} holds no complete prepared language model: call prepare_language again"
        )
    reading = json.loads((folder / "model.json").read_text())
    info = json.loads((_weights_of(folder) / "model.json").read_text()) | reading
    return Language(folder, info, device, dtype or DTYPES[info["precision"]])


@dataclass(frozen=True)
class Language:
    """A frozen language model. Pickles as its folder's path, so that sending it costs nothing."""

    folder: Path
    info: Mapping[str, Any]
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def __reduce__(self) -> tuple[Callable[..., Language], tuple[Path, str, torch.dtype]]:
        return load_language, (self.folder, self.device, self.dtype)

    @property
    def weights_hash(self) -> str:
        return str(self.info["weights_hash"])

    @property
    def weights_folder(self) -> Path:
        return _weights_of(self.folder)

    @property
    def causal(self) -> bool:
        """Whether a token sees only those before it."""
        return bool(self.info["causal"])

    @property
    def width(self) -> int:
        """d, the width of a hidden state."""
        return int(self.info["width"])

    @property
    def embed_dim(self) -> int:
        return self.width

    @property
    def num_layers(self) -> int:
        return int(self.info["num_layers"])

    @property
    def max_length(self) -> int:
        return int(self.info["max_length"])

    @property
    def lora_modules(self) -> tuple[str, ...]:
        """The modules that peft adapts by default in such a model; empty if it knows none."""
        return tuple(self.info["lora_modules"])

    @property
    def ia3_modules(self) -> Mapping[str, list[str]]:
        """Those that peft rescales: ``modules``, ``feedforward`` among them; empty if none."""
        return dict(self.info["ia3_modules"])

    @property
    def groupable(self) -> bool:
        """Whether clients can share a ``vmap``."""
        return str(self.info["quantization"]) == "none"

    def build(self) -> nn.Module:
        """A new module on the mapped weights; its tensors are shared with every other one."""
        if self.info["quantization"] != "none":
            from fl_core.backbones.language_prepare import load_quantized

            return load_quantized(self.weights_folder, self.info["quantization"], self.device)
        return mapped_module(self.weights_folder, self.causal, self.device, self.dtype)

    # -- texts -------------------------------------------------------------------------------

    @cached_property
    def tokenizer(self) -> Any:
        if not self.info["tokenizer"]:
            raise ConfigError(
                f"model {self.info['model']!r} has no tokenizer, so it reads no text: put its "
                "tokenizer files into its folder."
            )
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(self.weights_folder))

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids int32 [B, max_length] with the model's special tokens, PADDING elsewhere.

        DataError for texts that are too long, where none may be cut, and for those without a token.
        """
        ids = [self._trimmed(row) for row in self.tokenizer(list(texts))["input_ids"]]
        check_rows(ids, self.info)
        cut = self.info["truncation"]
        if max(map(len, ids), default=0) > self.max_length:
            self.tokenizer.truncation_side = "right" if cut == "end" else "left"
            length = self.max_length + len(self._ending)
            short = self.tokenizer(list(texts), truncation=True, max_length=length)["input_ids"]
            ids = [self._trimmed(row) for row in short]
        rows = torch.full((len(ids), self.max_length), PADDING, dtype=torch.int32)
        for row, own in zip(rows, ids, strict=True):
            at = slice(-len(own), None) if self.info["padding"] == "left" else slice(len(own))
            if own:
                row[at] = torch.tensor(own, dtype=torch.int32)
        return rows

    @cached_property
    def _ending(self) -> list[int]:
        """Tokens that end a whole text, and would stand between it and its label words."""
        end = self.tokenizer.eos_token_id
        row = self.tokenizer("x")["input_ids"]
        return [end] if self.causal and end is not None and row[-1:] == [end] else []

    def _trimmed(self, row: list[int]) -> list[int]:
        ending = self._ending
        return row[: -len(ending)] if ending and row[-len(ending) :] == ending else row

    def label_tokens(self, words: Sequence[str]) -> list[list[int]]:
        """The tokens of each of some words as they follow a text and a space."""
        from fl_core.backbones.language_answers import following

        kept = self.weights_folder / "tokens"
        compute = lambda: following(self.tokenizer, words)  # noqa: E731
        return [list(row) for row in cached_tokens(kept, "labels", words, compute)]

    # -- stored inputs -----------------------------------------------------------------------

    def reading(self, kind: str) -> str:
        """A name for how texts become one kind of stored input."""
        names = ("max_length", "truncation", "padding", "dtype")
        facts = {**self.info, "dtype": str(self.dtype)}
        return f"{kind}; {', '.join(f'{name} {facts[name]}' for name in names)}"

    def encoder(self, kind: str) -> Callable[[Sequence[str]], Tensor]:
        """Texts -> one kind of stored input; ConfigError where the model has none of that kind.

        token_ids: int32 [B, max_length]. below_top_K: the hidden states that enter the top K
        layers, float32 [B, max_length, d], zero where there is no token. last_token: the last
        state of each text's last token, float32 [B, d]. response_ids_T: of answers, int32 [B, T].
        """
        if kind == TOKEN_IDS:
            return self.tokenize
        if kind.startswith(BELOW_TOP):
            from fl_core.backbones.language_states import below_top

            states = below_top(self, int(kind.removeprefix(BELOW_TOP)))
            return lambda texts: states(self.tokenize(texts))
        if kind.startswith(RESPONSE_IDS):
            from fl_core.backbones.language_answers import response_ids

            most = int(kind.removeprefix(RESPONSE_IDS))
            return lambda texts: response_ids(self, texts, most)
        if kind == LAST_TOKEN:
            from fl_core.backbones.language_states import last_token

            of_last = last_token(self)
            return lambda texts: of_last(self.tokenize(texts))
        raise ConfigError(
            f"a language model puts out {TOKEN_IDS}, {LAST_TOKEN} or {BELOW_TOP}K, not {kind}: "
            "choose backbone=open_clip, or a learner for texts such as lora."
        )


def _refuse_quantization(spec: LanguageModel) -> None:
    if spec.quantization == "none":
        return
    missing = [] if find_spec("bitsandbytes") else ["the package bitsandbytes"]
    missing += [] if torch.cuda.is_available() else ["a GPU"]
    if missing:
        raise ConfigError(
            f"backbone.quantization = {spec.quantization} needs {' and '.join(missing)} here: "
            "install what is missing, or set backbone.quantization=none."
        )


def _key(spec: LanguageModel, source: Path) -> str:
    """What the prepared folder depends on, without reading it: names, sizes, times, versions."""
    files = sorted(p for p in source.iterdir() if p.is_file()) if source.is_dir() else []
    stats = [(str(path.resolve()), path.stat()) for path in files]
    facts = [FORMAT, asdict(spec), [(name, s.st_size, s.st_mtime_ns) for name, s in stats]]
    text = json.dumps([*facts, version("transformers")], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _weights_of(folder: Path) -> Path:
    try:
        return folder.parent / str(json.loads((folder / "model.json").read_text())["weights"])
    except (OSError, ValueError, KeyError):
        return folder / "missing"
