"""Stage `export`: writes the model folder in open_clip's own layout."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from scenarios.data.packaged.recipe.align import load_projections
from scenarios.data.packaged.recipe.towers import MODEL_CFG, PREPROCESS_CFG, new_model

PACKAGED = Path(__file__).resolve().parents[1]
MODEL_FOLDER = PACKAGED / "emoji_clip"


def export(work: Path) -> None:
    model, projections = new_model(work), load_projections(work)
    model.load_state_dict(torch.load(work / "student.pt", weights_only=True))
    with torch.no_grad():
        model.visual.head.proj.weight.copy_(projections.image.weight)
        model.visual.head.proj.bias.copy_(projections.image.bias)
        model.logit_scale.copy_(projections.log_scale)
    state = {
        name: value.half().contiguous() if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    MODEL_FOLDER.mkdir(exist_ok=True)
    weights = MODEL_FOLDER / "open_clip_model.safetensors"
    save_file(state, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    config = {"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}
    text = json.dumps(config, indent=2) + "\n"
    (MODEL_FOLDER / "open_clip_config.json").write_text(text, encoding="utf-8")
    items = (work / "selected" / "aligned_items.parquet").read_bytes()
    (MODEL_FOLDER / "aligned_items.parquet").write_bytes(items)
