"""Stage `export_vit`: the second model's folder, which shares the text tower of the first."""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file

from scenarios.data.packaged.recipe.export import MODEL_FOLDER, PACKAGED
from scenarios.data.packaged.recipe.towers import MODEL_CFG, PREPROCESS_CFG
from scenarios.data.packaged.recipe.vit import VISION_CFG

VIT_FOLDER = PACKAGED / "emoji_clip_vit"
IMAGE_FILE = "image_tower.safetensors"
TEXT_FILE = MODEL_FOLDER / "open_clip_model.safetensors"


def export_vit(work: Path) -> None:
    """Half precision, as the first model; `towers` tells fedarena where the two towers lie."""
    state = torch.load(work / "vit.pt", weights_only=True)
    VIT_FOLDER.mkdir(exist_ok=True)
    halves = {name: value.half().contiguous() for name, value in state.items()}
    weights = VIT_FOLDER / IMAGE_FILE
    save_file(halves, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    towers = {"image": IMAGE_FILE, "text": Path(os.path.relpath(TEXT_FILE, VIT_FOLDER)).as_posix()}
    config = {
        "model_cfg": MODEL_CFG | {"vision_cfg": VISION_CFG},
        "preprocess_cfg": PREPROCESS_CFG,
        "towers": towers,
    }
    text = json.dumps(config, indent=2) + "\n"
    (VIT_FOLDER / "open_clip_config.json").write_text(text, encoding="utf-8")
    items = (MODEL_FOLDER / "aligned_items.parquet").read_bytes()
    (VIT_FOLDER / "aligned_items.parquet").write_bytes(items)
