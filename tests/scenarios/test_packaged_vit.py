"""The packaged CLIP with a ViT: open_clip's own, the text tower of the first, and of some use."""

import json

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from fl_core.backbones.clip import load_clip, prepare_clip
from fl_core.backbones.clip_origin import OpenClip
from fl_core.errors import ConfigError
from fl_core.federation import FedAvg
from fl_core.learners import VPT, LoraClip, MaPLe, PromptSRC, ZeroShot
from fl_core.local import Problem, stack, train_group
from fl_core.optim import SGD
from fl_core.seeds import generator
from fl_core.types import Task
from fl_core.work import Moment, Training, plan_work
from scenarios.data.catalogue import PACKAGED_BACKBONES, load_dataset
from scenarios.data.dataset import TEST

FIRST, SECOND = PACKAGED_BACKBONES["emoji_clip"], PACKAGED_BACKBONES["emoji_clip_vit"]
LEARNERS = (
    VPT(depth=6),
    MaPLe(depth=4),
    PromptSRC(depth=4),
    LoraClip(alpha=8.0, dropout=0.0),
)


def prepared(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    return load_clip(prepare_clip(OpenClip(model=name), folder, PACKAGED_BACKBONES))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return prepared(FIRST.name, tmp_path_factory)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return prepared(SECOND.name, tmp_path_factory)


@pytest.fixture(scope="module")
def model():
    """The model as open_clip loads it, from the files that its configuration names."""
    about = json.loads((SECOND / "open_clip_config.json").read_text())
    image, text = (str(SECOND / about["towers"][tower]) for tower in ("image", "text"))
    found = open_clip.create_model(
        f"local-dir:{SECOND}",
        load_weights=False,
        pretrained_image_path=image,
        pretrained_text_path=text,
    )
    return found.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def emoji():
    """The data set, and every ninth of its test rows as pixels."""
    dataset = load_dataset("emoji_coarse")
    rows = np.flatnonzero(dataset.split == TEST)[::9]
    return dataset, rows


@pytest.fixture(scope="module")
def pixels(clip, emoji):
    dataset, rows = emoji
    transform = clip.transform()
    return torch.stack([transform(dataset.image(int(row))) for row in rows])


def test_open_clip_loads_every_tensor_from_the_files(model):
    stored = load_file(SECOND / "image_tower.safetensors")
    visual = model.visual.state_dict()
    assert stored.keys() == visual.keys()
    assert all(torch.equal(visual[name], tensor.float()) for name, tensor in stored.items())
    text = load_file(FIRST / "open_clip_model.safetensors")
    rest = {n: t for n, t in model.state_dict().items() if not n.startswith("visual.")}
    assert all(torch.equal(tensor, text[name].float()) for name, tensor in rest.items())


def test_the_image_tower_is_open_clips_own_vit_of_64_patches(model):
    visual = model.visual
    assert type(visual).__name__ == "VisionTransformer"
    assert visual.grid_size == (8, 8)
    assert sum(p.numel() for p in visual.parameters()) < 1.5e6
    assert (SECOND / "image_tower.safetensors").stat().st_size < 3e6


def test_features_are_those_of_open_clip(clip, model, pixels):
    expected = model.encode_image(pixels[:8], normalize=True)
    torch.testing.assert_close(clip.image_encoder()(pixels[:8]), expected, rtol=0, atol=1e-5)
    tokens = clip.encoder("tokens")(pixels[:8])
    assert tokens.shape == (8, 65, 128)
    tower = clip.vision_tower()
    found = F.normalize(tower.encode(tokens, torch.zeros(0, tower.width)), dim=-1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_patch_features_are_of_64_places(clip, pixels):
    features, patches = clip.image_encoder(patches=True)(pixels[:8])
    assert patches.shape == (8, 64, 256)
    torch.testing.assert_close(patches.norm(dim=-1), torch.ones(8, 64))
    torch.testing.assert_close(features, clip.image_encoder()(pixels[:8]), rtol=0, atol=1e-5)


def test_texts_and_scale_are_those_of_the_first_model(clip, first):
    ids = clip.tokenize(["an icon of a bird", "a photo of a boat"])
    assert torch.equal(clip.text.encode_tokens(ids), first.text.encode_tokens(ids))
    assert clip.scale == first.scale


def test_it_was_aligned_on_what_the_first_was_aligned_on():
    lists = [(folder / "aligned_items.parquet").read_bytes() for folder in (FIRST, SECOND)]
    assert lists[0] == lists[1]


def problem_of(learner, clip, emoji, pixels):
    dataset, rows = emoji
    task = Task(dataset.classes, dataset.templates[:1])
    frozen = learner.prepare(clip, task)
    inputs = {kind: clip.encoder(kind)(pixels) for kind in learner.inputs}
    labels = torch.from_numpy(dataset.labels[rows])
    return Problem(learner, frozen, learner.init(frozen, generator(0, "init")), inputs, labels)


def test_it_names_pictures_far_better_than_chance(clip, emoji, pixels):
    problem = problem_of(ZeroShot(), clip, emoji, pixels)
    logits = problem.learner.logits(problem.initial, problem.frozen, problem.inputs)
    accuracy = (logits.argmax(dim=1) == problem.labels).double().mean()
    assert accuracy > 3 / len(emoji[0].classes)


def cross_entropy(problem, params):
    logits = problem.learner.logits(params, problem.frozen, problem.inputs)
    return float(F.cross_entropy(logits, problem.labels))


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.name)
def test_prompts_and_adapters_in_the_image_tower_learn_on_it(learner, clip, emoji, pixels):
    dataset, rows = emoji
    problem = problem_of(learner, clip, (dataset, rows[:16]), pixels[:16])
    rule, moment = FedAvg(), Moment(0, 1, 0)
    specs = learner.tensors(problem.initial)
    broadcast = rule.broadcast(rule.init_server(problem.initial, specs, 1))
    states = stack([rule.init_client(problem.initial, specs)])
    training = Training(SGD(lr=0.01), local_steps=4, batch_size=16)
    work = plan_work(training, moment, [0], [torch.arange(16)])
    updates = train_group(problem, rule, training, broadcast, states, work, moment).update
    trained = {name: broadcast[name] + update[0] for name, update in updates.items()}
    assert cross_entropy(problem, trained) < cross_entropy(problem, problem.initial)


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda learner: learner.name)
def test_the_first_model_is_refused_by_them(learner, first):
    with pytest.raises(ConfigError, match="need open_clip's own ViT"):
        learner.prepare(first, Task(("cat", "dog")))
