"""CLIP-like models from open_clip: prepared once into a folder, then memory-mapped by everyone.

``prepare_clip`` runs once per machine and needs open_clip; ``load_clip`` maps what it wrote and
needs torch and safetensors only. Images, transforms and tokens import open_clip when first used.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, overload

import torch
from torch import Tensor

from fl_core.backbones.clip_origin import OpenClip, find_origin, source_key
from fl_core.backbones.module_tower import ModuleTower
from fl_core.backbones.prepared import is_complete, read_tensors
from fl_core.backbones.prompt_plan import NameTokens, Position
from fl_core.backbones.text_tower import PromptLayout, TextTower, load_tower
from fl_core.backbones.token_cache import cached_tokens
from fl_core.backbones.vision import (
    ImageEncoder,
    PatchEncoder,
    TokenEncoder,
    patch_encoder,
    rebuild,
)
from fl_core.backbones.vision_tower import VisionTower, vision_tower
from fl_core.errors import StateError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def prepare_clip(spec: OpenClip, folder: Path, packaged: Mapping[str, Path]) -> Path:
    """The folder, inside ``folder``, that holds the model ready to be mapped; written if missing.

    packaged: folders of models by name, in open_clip's local-dir format. Safe for any number of
    processes at once: each writes its own folder and renames it, and equal content is one folder.
    """
    origin = find_origin(spec, packaged)
    key = folder / "by-source" / f"{source_key(spec, origin)}.json"
    if key.is_file():
        known = folder / str(json.loads(key.read_text())["weights_hash"])
        if is_complete(known):
            return known
    from fl_core.backbones.clip_prepare import prepare

    return prepare(spec, origin, folder, key, sorted(packaged))


def load_clip(folder: Path, device: str = "cpu") -> Clip:
    """The model of a folder that ``prepare_clip`` returned."""
    if not is_complete(folder):
        raise StateError(f"{folder} holds no complete prepared CLIP: call prepare_clip again")
    info = json.loads((folder / "model.json").read_text())
    text: TextTower
    if info["text"]["kind"] == "tower":
        tower = load_tower(folder / "text.safetensors")
        text = tower if device == "cpu" else tower.to(device)
    else:
        text = _module_tower(folder, info, device)
    return Clip(folder, info, text, device)


@dataclass(frozen=True)
class Clip:
    """A frozen CLIP. Pickles as its folder's path, so that sending it costs nothing.

    text: the text tower, mapped; ``text.groupable`` says whether clients can share a ``vmap``.
    """

    folder: Path
    info: Mapping[str, Any]
    text: TextTower
    device: str = "cpu"

    def __reduce__(self) -> tuple[Callable[[Path, str], Clip], tuple[Path, str]]:
        return load_clip, (self.folder, self.device)

    @property
    def logit_scale(self) -> float:
        """The logarithm of the factor on cosine similarities, as CLIP stores it."""
        return float(self.info["logit_scale"])

    @property
    def scale(self) -> float:
        """s = exp(logit_scale)."""
        return math.exp(self.logit_scale)

    @property
    def logit_bias(self) -> float | None:
        """SigLIP's bias on logits; None for models without one."""
        bias = self.info["logit_bias"]
        return None if bias is None else float(bias)

    @property
    def weights_hash(self) -> str:
        return str(self.info["weights_hash"])

    @property
    def embed_dim(self) -> int:
        return int(self.info["embed_dim"])

    @property
    def groupable(self) -> bool:
        """Whether clients can share a ``vmap``."""
        return self.text.groupable

    @property
    def weights_folder(self) -> Path:
        return self.folder

    def reading(self, kind: str) -> str:
        """A name for how images become one kind of stored input."""
        return str(sorted(self.info["preprocess"].items()))

    @property
    def width(self) -> int:
        """d_t, the width of the text tower and of a context vector."""
        return self.text.width

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.info["precision"]]

    @cached_property
    def _vision(self) -> torch.nn.Module:
        from open_clip.model import _build_vision_tower

        config = self.info["model_cfg"]
        vision = {**config["vision_cfg"], "timm_model_pretrained": False}
        args = (config["embed_dim"], vision, config.get("quick_gelu", False), self._cast_dtype)
        tensors = read_tensors(self.folder / "vision.safetensors")
        return rebuild(lambda: _build_vision_tower(*args), tensors, self.device)

    @property
    def _cast_dtype(self) -> torch.dtype | None:
        return None if self.info["precision"] == "fp32" else self.dtype

    @overload
    def image_encoder(self, patches: Literal[False] = False) -> ImageEncoder: ...

    @overload
    def image_encoder(self, patches: Literal[True]) -> PatchEncoder: ...

    def image_encoder(self, patches: bool = False) -> ImageEncoder | PatchEncoder:
        """Pixels [B, 3, H, W] -> features [B, D], with patches also [B, L, D], all normalised."""
        if patches:
            return patch_encoder(self._vision, self.dtype)
        # Channels last: a third faster for convolutional towers on a CPU, and no loss for others.
        return ImageEncoder(self._vision.to(memory_format=torch.channels_last), self.dtype)

    def encoder(self, kind: str) -> Callable[[Tensor], Tensor]:
        """Pixels [B, 3, H, W] -> one kind of stored input; ConfigError where it is not defined.

        features: [B, D]. patches: patch features [B, L, D]; both normalised. tokens: what the
        first block of a ViT sees, [B, 1 + L, d_v].
        """
        match kind:
            case "features":
                return self.image_encoder()
            case "patches":
                encode = self.image_encoder(patches=True)
                return lambda pixels: encode(pixels)[1]
            case "tokens":
                self.vision_tower()  # refuses what has no tokens
                return TokenEncoder(self._vision, self.dtype)
        raise ValueError(f"no image tower puts out {kind!r}: it is features, patches or tokens.")

    def vision_tower(self) -> VisionTower:
        """The image tower as a function of prompts, in the precision of the text tower."""
        return vision_tower(self._vision, self.text.dtype)

    def transform(self) -> Callable[[Any], Tensor]:
        """PIL image -> pixels [3, H, W]: open_clip's preprocessing for evaluation."""
        from open_clip.transform import PreprocessCfg, image_transform_v2

        transform: Callable[[Any], Tensor] = image_transform_v2(
            PreprocessCfg(**self.info["preprocess"]), is_train=False
        )
        return transform

    @cached_property
    def _tokenizer(self) -> Any:
        from fl_core.backbones.tokens import load_tokenizer

        return load_tokenizer(self.info["tokenizer"], self.folder / "tokenizer")

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token rows [C, L] of whole texts, as the model was trained on them."""
        rows = self._cached("texts", texts, lambda: self._tokenizer(list(texts)).tolist())
        return torch.tensor(rows, device=self.device)

    def embed_text(self, text: str) -> Tensor:
        """The token embeddings [M, d_t] of some words, to start a context from."""
        from fl_core.backbones.tokens import word_ids

        ids = self._cached("words", [text], lambda: word_ids(self._tokenizer, text))
        return self.text.embed(torch.tensor(ids, device=self.device)).clone()

    def name_tokens(self, classes: Sequence[str]) -> NameTokens:
        """Class names as tokens; underscores are spaces, as in CoOp."""
        from fl_core.backbones.tokens import name_tokens

        found = self._cached(
            "names", classes, lambda: asdict(name_tokens(self._tokenizer, classes))
        )
        found["ids"] = [tuple(row) for row in found["ids"]]
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in found.items()
        }
        return NameTokens(**fields)

    def _cached(self, kind: str, texts: Sequence[str], compute: Callable[[], Any]) -> Any:
        return cached_tokens(self.folder / "tokens", kind, texts, compute)

    def prompt_layout(
        self,
        classes: Sequence[str],
        *,
        num_tokens: int,
        position: Position = "end",
        class_specific: bool = False,
    ) -> PromptLayout:
        """All about the prompts of these classes that no training step changes."""
        return self.text.layout(
            self.name_tokens(classes), num_tokens, position=position, class_specific=class_specific
        )


def _module_tower(folder: Path, info: Mapping[str, Any], device: str) -> ModuleTower:
    from open_clip.model import _build_text_tower

    config = info["model_cfg"]
    text = {**config["text_cfg"], "hf_model_pretrained": False, "output_tokens": False}
    if text.get("hf_model_name"):
        text["hf_model_name"] = str(folder / "text_config")
    cast = None if info["precision"] == "fp32" else DTYPES[info["precision"]]
    args = (config["embed_dim"], text, config.get("quick_gelu", False), cast)
    tensors = read_tensors(folder / "text.safetensors")
    module = rebuild(lambda: _build_text_tower(*args), tensors, device)
    return ModuleTower(module, info["text"]["context_length"], config["embed_dim"])
