"""Preparing, mapping and using open_clip models."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fl_core.backbones import clip_prepare
from fl_core.backbones.clip import Clip, load_clip, prepare_clip
from fl_core.backbones.clip_origin import OpenClip
from fl_core.backbones.module_tower import ModuleTower
from fl_core.backbones.text_tower import FunctionalTower
from fl_core.errors import ConfigError, StateError

ROOT = Path(__file__).parents[2]
VISION = {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16, "image_size": 32}
TEXT = {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
CONFIG = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
CLASSES = ("cat", "St._Bernard (dog)", "hot air balloon")


def local_dir(folder: Path, config: dict[str, Any], seed: int = 0) -> Path:
    """A model of random weights in open_clip's local-dir format."""
    folder.mkdir(parents=True, exist_ok=True)
    about = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def whole(folder: Path, **options: Any) -> Any:
    return open_clip.create_model(f"local-dir:{folder}", **options).eval()


def prepared(folder: Path, into: Path) -> Clip:
    return load_clip(prepare_clip(OpenClip(model=f"local-dir:{folder}"), into, {}))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return local_dir(tmp_path_factory.mktemp("source") / "model", CONFIG)


@pytest.fixture(scope="module")
def clip(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return prepared(source, tmp_path_factory.mktemp("prepared"))


def pixels(size: int = 32) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-5, rtol=1e-5)


def test_images_texts_and_scale_are_those_of_open_clip(clip: Clip, source: Path) -> None:
    model = whole(source)
    close(clip.image_encoder()(pixels()), model.encode_image(pixels(), normalize=True))
    texts = [f"a photo of a {name}." for name in CLASSES]
    ids = open_clip.get_tokenizer(f"local-dir:{source}")(texts)
    assert torch.equal(clip.tokenize(texts), ids)
    close(clip.text.encode_tokens(ids), model.encode_text(ids))
    assert clip.scale == pytest.approx(model.logit_scale.exp().item())
    assert (clip.embed_dim, clip.width, clip.logit_bias) == (24, 32, None)


def test_a_context_of_words_gives_the_features_of_the_whole_texts(clip: Clip, source: Path) -> None:
    layout = clip.prompt_layout(CLASSES, num_tokens=4)
    features = clip.text.encode(layout, clip.embed_text("a photo of a"))
    names = [name.replace("_", " ") for name in CLASSES]
    ids = clip.tokenize([f"a photo of a {name}." for name in names])
    close(features, whole(source).encode_text(ids))


def test_the_transform_is_open_clips(clip: Clip, source: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    _, _, transform = open_clip.create_model_and_transforms(f"local-dir:{source}")
    assert torch.equal(clip.transform()(image), transform(image))
    assert clip.transform()(image).shape == (3, 32, 32)


def test_patch_features_are_projected_and_normalised_tokens(clip: Clip, source: Path) -> None:
    visual = whole(source).visual
    features, patches = clip.image_encoder(patches=True)(pixels())
    assert patches.shape == (3, 4, 24)
    seen = visual.forward_intermediates(pixels(), indices=1, output_fmt="NLC")
    tokens = seen["image_intermediates"][0]
    close(patches, F.normalize(visual.ln_post(tokens) @ visual.proj, dim=-1))
    close(features, F.normalize(visual(pixels()), dim=-1))


def test_patch_features_of_a_cnn_average_to_its_features(tmp_path: Path) -> None:
    vision = {
        "timm_model_name": "resnet10t",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 64,
    }
    source = local_dir(tmp_path / "cnn", {**CONFIG, "vision_cfg": vision})
    clip = prepared(source, tmp_path / "prepared")
    features, patches = clip.image_encoder(patches=True)(pixels(64))
    assert patches.shape == (3, 4, 24)
    close(features, whole(source).encode_image(pixels(64), normalize=True))
    visual = whole(source).visual
    cells = visual.trunk.forward_features(pixels(64)).flatten(2).mT
    close(patches, F.normalize(visual.head(cells), dim=-1))


def test_patch_features_behind_an_attention_pooler_are_refused(tmp_path: Path) -> None:
    vision = {**VISION, "attentional_pool": True, "attn_pooler_heads": 2}
    clip = prepared(local_dir(tmp_path / "m", {**CONFIG, "vision_cfg": vision}), tmp_path / "p")
    with pytest.raises(ConfigError, match="attention pooler"):
        clip.image_encoder(patches=True)


def test_buffers_outside_the_state_dict_are_rebuilt_too() -> None:
    vision = {"timm_model_name": "swin_tiny_patch4_window7_224", "timm_pool": "avg"}
    vision |= {"timm_proj": "linear", "image_size": 224}
    torch.manual_seed(0)
    visual = open_clip.model._build_vision_tower(24, vision).eval()
    from fl_core.backbones.vision import all_tensors, rebuild

    tensors = all_tensors(visual)
    assert set(tensors) > set(visual.state_dict())
    again = rebuild(lambda: open_clip.model._build_vision_tower(24, vision), tensors, "cpu")
    with torch.no_grad():
        assert torch.equal(again(pixels(224)[:1]), visual(pixels(224)[:1]))


LOAD = """
import sys
from pathlib import Path
from fl_core.backbones.clip import load_clip, prepare_clip
from fl_core.backbones.clip_origin import OpenClip
spec = OpenClip(model="tiny")
clip = load_clip(prepare_clip(spec, Path(sys.argv[1]), {"tiny": Path(sys.argv[2])}))
heavy = [m for m in ("open_clip", "transformers", "timm", "torchvision") if m in sys.modules]
print(clip.weights_hash, heavy)
"""


def test_a_prepared_model_is_found_and_mapped_without_open_clip(
    source: Path, tmp_path: Path
) -> None:
    path = prepare_clip(OpenClip(model="tiny"), tmp_path, {"tiny": source})
    command = [sys.executable, "-c", LOAD, str(tmp_path), str(source)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert out.stdout.split() == [path.name, "[]"]


def test_two_processes_preparing_at_once_agree(source: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOAD, str(tmp_path), str(source)]
    both = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)
    ]
    hashes = {process.communicate()[0].split()[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert hashes == {path.name for path in tmp_path.iterdir() if path.name != "by-source"}


def test_a_lost_race_leaves_the_winners_folder(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder appears between the look and the rename."""
    spec = OpenClip(model=f"local-dir:{source}")
    path = prepare_clip(spec, tmp_path, {})
    kept = path.stat().st_ino
    next((tmp_path / "by-source").iterdir()).unlink()
    rename = Path.rename

    def lose(self: Path, target: Path) -> Path:
        if self == path:
            raise FileNotFoundError(self)
        return rename(self, target)

    asked = iter([False, True])
    monkeypatch.setattr("fl_core.backbones.prepared.is_complete", lambda _: next(asked))
    monkeypatch.setattr(Path, "rename", lose)
    assert prepare_clip(spec, tmp_path, {}) == path
    assert path.stat().st_ino == kept
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_half_written_folder_is_ignored_and_written_again(
    source: Path, tmp_path: Path, damage: str
) -> None:
    spec = OpenClip(model=f"local-dir:{source}")
    path = prepare_clip(spec, tmp_path, {})
    if damage == "missing":
        (path / "model.json").unlink()
    else:
        (path / "vision.safetensors").write_bytes(b"short")
    with pytest.raises(StateError, match="prepare_clip again"):
        load_clip(path)
    (tmp_path / ".partial-of-a-dead-process").mkdir()
    assert prepare_clip(spec, tmp_path, {}) == path
    assert load_clip(path).image_encoder()(pixels()).shape == (3, 24)
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {path.name, "by-source", ".partial-of-a-dead-process"}


def test_the_hash_follows_the_weights_and_the_precision(source: Path, tmp_path: Path) -> None:
    spec = OpenClip(model=f"local-dir:{source}")
    first = prepare_clip(spec, tmp_path, {})
    assert prepare_clip(replace(spec, model="same"), tmp_path, {"same": source}) == first
    assert prepare_clip(replace(spec, precision="bf16"), tmp_path, {}) != first
    other = local_dir(tmp_path / "other", CONFIG, seed=1)
    assert prepare_clip(OpenClip(model=f"local-dir:{other}"), tmp_path, {}) != first


def test_bfloat16_is_open_clips_bfloat16(source: Path, tmp_path: Path) -> None:
    spec = OpenClip(model=f"local-dir:{source}", precision="bf16")
    clip = load_clip(prepare_clip(spec, tmp_path, {}))
    model = whole(source, precision="bf16")
    assert clip.text.dtype == torch.bfloat16
    ids = clip.tokenize(["a cat"])
    ours, theirs = clip.text.encode_tokens(ids), model.encode_text(ids)
    assert ours.dtype == theirs.dtype
    torch.testing.assert_close(ours, theirs, atol=0.05, rtol=0.05)
    seen = clip.image_encoder()(pixels())
    assert seen.dtype == torch.float32
    with torch.no_grad():
        exact = F.normalize(model.encode_image(pixels().bfloat16()).float(), dim=-1)
    torch.testing.assert_close(seen, exact, atol=1e-5, rtol=1e-5)


def test_a_clip_pickles_as_its_path(clip: Clip) -> None:
    data = pickle.dumps(clip)
    assert len(data) < 1000
    again = pickle.loads(data)  # noqa: S301
    assert again.weights_hash == clip.weights_hash


def test_random_weights_are_the_same_each_time_and_leave_the_global_generator_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Tiny-32", CONFIG)
    spec = OpenClip(model="Tiny-32", pretrained="random")
    state = torch.get_rng_state()
    first = prepare_clip(spec, tmp_path / "a", {})
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert prepare_clip(spec, tmp_path / "b", {}).name == first.name


def faults(spec: OpenClip, tmp_path: Path) -> str:
    with pytest.raises(ConfigError) as error:
        prepare_clip(spec, tmp_path, {"emoji_clip": Path("nowhere")})
    return str(error.value)


def test_unknown_names_are_refused_with_the_nearest_ones(tmp_path: Path) -> None:
    text = faults(OpenClip(model="ViT-B-33", pretrained="openai"), tmp_path)
    assert text.startswith("model 'ViT-B-33' is unknown. Did you mean 'ViT-B-32'")
    assert "emoji_clip" in faults(OpenClip(model="emojiclip"), tmp_path)
    text = faults(OpenClip(model="ViT-B-32", pretrained="laion400m_e33"), tmp_path)
    assert "neither a file nor a tag of 'ViT-B-32'. Did you mean 'laion400m_e32'" in text
    assert "open_clip_config.json" in faults(OpenClip(model="local-dir:/nowhere"), tmp_path)
    assert "open_clip_config.json" in faults(OpenClip(), tmp_path)


def test_an_open_clip_name_needs_weights_and_a_folder_brings_its_own(
    source: Path, tmp_path: Path
) -> None:
    text = faults(OpenClip(model="ViT-B-32"), tmp_path)
    assert "a tag, a file, or 'random'" in text
    spec = OpenClip(model=f"local-dir:{source}", pretrained="openai")
    assert "brings its own weights" in faults(spec, tmp_path)


def test_a_quickgelu_mismatch_is_an_error_that_names_the_right_model(tmp_path: Path) -> None:
    text = faults(OpenClip(model="ViT-B-32", pretrained="openai"), tmp_path)
    assert "trained with QuickGELU" in text
    assert "use model 'ViT-B-32-quickgelu'" in text
    with pytest.raises(ConfigError, match=r"computes QuickGELU, .* use model 'ViT-B-32'"):
        clip_prepare._check_activation("ViT-B-32-quickgelu", "some tag", weights=False)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CustomTextCLIP whose text tower is a tiny BERT with a tiny tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert") / "model"
    folder.mkdir()
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] . x a photo of cat st bernard ( dog ) hot air balloon"
    (folder / "vocab.txt").write_text("\n".join(words.split()))
    vocab = {word: i for i, word in enumerate(words.split())}
    tokenizer = BertTokenizerFast(vocab=vocab, do_lower_case=True)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(vocab), intermediate_size=64, **sizes)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    text = {
        "hf_model_name": str(folder),
        "hf_tokenizer_name": str(folder),
        "hf_proj_type": "linear",
        "hf_model_pretrained": False,
        "context_length": 24,
    }
    (folder / "open_clip_config.json").write_text("{}")
    config_ = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text, "custom_text": True}
    about = {"model_cfg": config_, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    torch.manual_seed(0)
    model = open_clip.create_model(f"local-dir:{folder}", pretrained_text=False)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def test_a_hugging_face_text_tower_runs_on_its_own_modules(bert: Path, tmp_path: Path) -> None:
    clip = prepared(bert, tmp_path)
    assert isinstance(clip.text, ModuleTower)
    assert not clip.text.groupable
    check_module_tower(clip, whole(bert))


def test_custom_blocks_and_coca_run_on_their_own_modules(tmp_path: Path) -> None:
    text = {**TEXT, "scale_attn": True, "scale_fc": True}
    for custom in (False, True):
        config = {**CONFIG, "text_cfg": text, "custom_text": custom}
        source = local_dir(tmp_path / f"blocks{custom}", config)
        clip = prepared(source, tmp_path / "prepared")
        assert isinstance(clip.text, ModuleTower)
        check_module_tower(clip, whole(source))
    coca = {
        "embed_dim": 24,
        "vision_cfg": {**VISION, "output_tokens": True, "attentional_pool": True}
        | {"attn_pooler_heads": 2, "attn_pooler_queries": 5},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "dim_head": 8, "n_queries": 5, "attn_pooler_heads": 2},
        "custom_text": True,
    }
    source = local_dir(tmp_path / "coca", coca)
    check_module_tower(prepared(source, tmp_path / "prepared"), whole(source))


def check_module_tower(clip: Clip, model: Any) -> None:
    """Whole rows as open_clip encodes them, words as context, and a gradient that is right."""
    text = clip.text
    names = [name.replace("_", " ") for name in CLASSES]
    ids = clip.tokenize([f"a photo of a {name}." for name in names])
    close(text.encode_tokens(ids), model.encode_text(ids, normalize=False))
    context = clip.embed_text("a photo of a")
    layout = clip.prompt_layout(CLASSES, num_tokens=4)
    close(text.encode(layout, context), model.encode_text(ids, normalize=False))
    pets = ("cat", "dog")
    layout = clip.prompt_layout(pets, num_tokens=4, position="front", class_specific=True)
    contexts = context.expand(2, 4, 32).clone().requires_grad_()
    features = text.encode(layout, contexts)
    ids = clip.tokenize([f"{name} a photo of a." for name in pets])
    close(features, model.encode_text(ids, normalize=False))
    grad = torch.autograd.grad(features[:, 0].sum(), contexts)[0]
    step = torch.zeros_like(contexts)
    step[0, 0] = 1e-2 * grad[0, 0] / grad[0, 0].norm()
    up, down = (text.encode(layout, contexts.detach() + s)[:, 0].sum() for s in (step, -step))
    assert float((up - down) / 0.02) == pytest.approx(float(grad[0, 0].norm()), rel=0.02)
    with pytest.raises(ConfigError, match="deep"):
        text.encode(layout, contexts, torch.zeros(1, 4, 32))


def test_a_siglip_like_model_with_a_tokenizer_that_writes_no_eos_is_exact(
    bert: Path, tmp_path: Path
) -> None:
    text = {
        **TEXT,
        "vocab_size": 24,
        "hf_tokenizer_name": "tiny",
        "tokenizer_kwargs": {"strip_sep_token": True},
        "no_causal_mask": True,
        "pool_type": "last",
        "proj_bias": True,
    }
    config = {**CONFIG, "text_cfg": text, "custom_text": True, "init_logit_bias": -10}
    source = local_dir(tmp_path / "siglip", config)
    for file in bert.glob("*token*"):
        (source / file.name).write_bytes(file.read_bytes())
    clip = prepared(source, tmp_path / "prepared")
    assert isinstance(clip.text, FunctionalTower)
    assert clip.logit_bias == pytest.approx(-10, abs=0.5)
    tokens = clip.name_tokens(CLASSES)
    assert (tokens.bos, tokens.eos, tokens.pad) == ((2,), (0,), 0)
    layout = clip.prompt_layout(CLASSES, num_tokens=4)
    features = clip.text.encode(layout, clip.embed_text("a photo of a"))
    names = [name.replace("_", " ") for name in CLASSES]
    ids = clip.tokenize([f"a photo of a {name}." for name in names])
    close(features, whole(source).encode_text(ids))
