"""CLIP folders whose towers lie in files of their own."""

import json

import open_clip
import pytest
import torch
from clip_toys import small_clip, write_clip
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from fl_core.backbones.clip import load_clip, prepare_clip
from fl_core.backbones.clip_origin import OpenClip
from fl_core.errors import ConfigError

WEIGHTS = "open_clip_model.safetensors"


def split_off(whole, folder, text):
    """A folder with the image tower of one model, and the text tower of another model's file."""
    folder.mkdir()
    about = json.loads((whole / "open_clip_config.json").read_text())
    about["towers"] = {"image": "image.safetensors", "text": f"../{text.name}/{WEIGHTS}"}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    tensors = load_file(whole / WEIGHTS).items()
    image = {n.removeprefix("visual."): t for n, t in tensors if n.startswith("visual.")}
    save_file(image, folder / "image.safetensors")
    return folder


def prepared(source, into):
    return load_clip(prepare_clip(OpenClip(model=f"local-dir:{source}"), into, {}))


@pytest.fixture
def whole(tmp_path):
    (tmp_path / "whole").mkdir()
    return write_clip(tmp_path / "whole")


@pytest.fixture
def parts(tmp_path, whole):
    return split_off(whole, tmp_path / "parts", whole)


def test_a_model_in_two_files_is_the_model_in_one(tmp_path, whole, parts):
    one, two = prepared(whole, tmp_path / "a"), prepared(parts, tmp_path / "b")
    assert one.weights_hash == two.weights_hash


def test_each_tower_is_the_one_of_its_file(tmp_path, whole):
    """The image tower of a model of three layers beside the text tower of one of two."""
    (tmp_path / "deeper").mkdir()
    deeper = write_clip(tmp_path / "deeper", layers=3)
    changed = {
        name: tensor + 0.1 * torch.randn_like(tensor) if name.startswith("visual.") else -tensor
        for name, tensor in load_file(deeper / WEIGHTS).items()
    }
    save_file(changed, deeper / WEIGHTS)
    clip = prepared(split_off(deeper, tmp_path / "mixed", whole), tmp_path / "prepared")
    models = [open_clip.create_model(f"local-dir:{folder}").eval() for folder in (deeper, whole)]
    pixels = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    found, expected = clip.image_encoder()(pixels), models[0].encode_image(pixels).detach()
    torch.testing.assert_close(found, F.normalize(expected, dim=-1), rtol=1e-5, atol=1e-5)
    ids = clip.tokenize(["a photo of a cat"])
    found, expected = clip.text.encode_tokens(ids), models[1].encode_text(ids).detach()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert clip.logit_scale == pytest.approx(models[1].logit_scale.item())


def test_a_change_of_the_shared_file_is_noticed(tmp_path, whole, parts):
    before = prepared(parts, tmp_path / "prepared")
    tensors = load_file(whole / WEIGHTS)
    save_file({**tensors, "logit_scale": tensors["logit_scale"] + 1}, whole / WEIGHTS)
    after = prepared(parts, tmp_path / "prepared")
    assert after.logit_scale == pytest.approx(before.logit_scale + 1)


@pytest.mark.parametrize(
    ("towers", "reason"),
    [
        ({"image": "image.safetensors"}, "must be"),
        ({"image": "image.safetensors", "text": 3}, "must be"),
        (["image.safetensors"], "must be"),
        ({"image": "imag.safetensors", "text": "text.pt"}, r"imag\.safetensors, .*text\.pt.* miss"),
        ({"image": "open_clip_config.json", "text": "image.safetensors"}, "cannot be read"),
        ({"image": "image.safetensors", "text": "image.safetensors"}, "not a whole open_clip"),
        ({"image": f"../whole/{WEIGHTS}", "text": f"../whole/{WEIGHTS}"}, "open_clip cannot load"),
    ],
    ids=str,
)
def test_towers_that_are_wrongly_named_are_refused(tmp_path, parts, towers, reason):
    about = json.loads((parts / "open_clip_config.json").read_text())
    (parts / "open_clip_config.json").write_text(json.dumps({**about, "towers": towers}))
    with pytest.raises(ConfigError, match=reason):
        prepared(parts, tmp_path / "prepared")


def test_a_plain_folder_is_read_as_before(tmp_path):
    assert small_clip(tmp_path).embed_dim == 32
