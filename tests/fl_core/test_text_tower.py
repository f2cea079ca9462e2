"""The text tower against open_clip's own modules, its gradients, and its files."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.model import CLIP
from torch import Tensor, nn
from torch.nn import functional as F
from tower_toys import BOS, EOS, NAMES, PERIOD, PHOTO, TEXT, VISION, clip_model, names_of

from fl_core.backbones import extract
from fl_core.backbones.prompt_plan import NameTokens, plan_buckets
from fl_core.backbones.text_tower import FunctionalTower, load_tower, save_tower
from fl_core.errors import ConfigError


def rows_of(position: str, bos: tuple[int, ...] = (BOS,)) -> tuple[Tensor, Tensor]:
    """Whole token rows [C, L] with "a photo of a" as context, and where it stands [C, M]."""
    rows, slots = [], []
    before = {"end": 4, "middle": 2, "front": 0}[position]
    for name in NAMES:
        row = [*bos, *PHOTO[:before], *name, *PHOTO[before:], PERIOD, EOS]
        first = [len(bos) + i for i in range(before)]
        slots.append(first + [len(bos) + len(name) + i for i in range(before, 4)])
        rows.append(row + [0] * (TEXT["context_length"] - len(row)))
    return torch.tensor(rows), torch.tensor(slots)


def reference(model: nn.Module, rows: Tensor, slots: Tensor, context: Tensor) -> Tensor:
    """Features through open_clip's own modules on the whole rows, context put into its slots."""
    text = getattr(model, "text", model)
    x = text.token_embedding(rows)
    if context.ndim == 2:
        context = context.expand(len(rows), *context.shape)
    x = x.scatter(1, slots[:, :, None].expand(context.shape), context)
    x = x + text.positional_embedding
    x = text.ln_final(text.transformer(x, attn_mask=text.attn_mask))
    last = getattr(text, "pool_type", "argmax") == "last"
    x = x[:, -1] if last else x[torch.arange(len(rows)), rows.argmax(-1)]
    w = text.text_projection
    return w(x) if isinstance(w, nn.Linear) else x @ w


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


KINDS = ["clip", "custom", "quick_gelu", "siglip"]


@pytest.mark.parametrize("kind", KINDS)
def test_whole_token_rows_are_encoded_as_open_clip_does(kind: str) -> None:
    model = clip_model(kind)
    rows, _ = rows_of("end")
    ours = extract.text_tower(model).encode_tokens(rows, chunk=2)
    torch.testing.assert_close(ours, model.encode_text(rows).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_a_context_of_real_words_equals_open_clips_encode_text(kind: str, position: Any) -> None:
    model = clip_model(kind)
    bos = () if kind == "siglip" else (BOS,)
    tower = extract.text_tower(model)
    layout = tower.layout(names_of(bos), 4, position=position)
    ours = tower.encode(layout, tower.embed(torch.tensor(PHOTO)))
    theirs = model.encode_text(rows_of(position, bos)[0]).detach()
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("bucket_cost", [0, 1000])
def test_the_gradient_is_that_of_open_clips_modules_on_whole_rows(
    kind: str, position: Any, class_specific: bool, bucket_cost: int
) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-10)):
        model = clip_model(kind).to(dtype)
        tower = extract.text_tower(model)
        layout = tower.layout(
            names_of(),
            4,
            position=position,
            class_specific=class_specific,
            bucket_cost=bucket_cost,
        )
        context, target = random_context(class_specific, dtype), torch.randn(5, 24, dtype=dtype)
        rows, slots = rows_of(position)
        grads, values = [], []
        for encode in (
            lambda c, t=tower, la=layout: t.encode(la, c),
            lambda c, m=model, r=rows, s=slots: reference(m, r, s, c),
        ):
            leaf = context.clone().requires_grad_()
            values.append(encode(leaf))
            loss = (F.normalize(values[-1], dim=-1) * target).sum()
            grads.append(torch.autograd.grad(loss, leaf)[0])
        assert relative(values[0], values[1]) < tolerance
        assert relative(grads[0], grads[1]) < tolerance


def random_context(class_specific: bool, dtype: torch.dtype) -> Tensor:
    shape = (len(NAMES), 4, 32) if class_specific else (4, 32)
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


def test_layer_scale_and_a_single_layer_are_exact() -> None:
    for text in ({"ls_init_value": 0.3}, {"layers": 1}):
        model = clip_model("custom", **text).double()
        tower = extract.text_tower(model)
        for position in ("end", "front"):
            layout = tower.layout(names_of(), 4, position=position)  # type: ignore[arg-type]
            ours = tower.encode(layout, tower.embed(torch.tensor(PHOTO)))
            assert relative(ours, model.encode_text(rows_of(position)[0])) < 1e-10


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@pytest.mark.parametrize("position", ["end", "middle"])
@pytest.mark.parametrize("class_specific", [False, True])
def test_three_contexts_under_vmap_equal_one_by_one(
    kind: str, position: Any, class_specific: bool
) -> None:
    tower = extract.text_tower(clip_model(kind).double())
    layout = tower.layout(names_of(), 4, position=position, class_specific=class_specific)
    one = random_context(class_specific, torch.float64)
    contexts = torch.stack([one, 2 * one, one.flip(-1)])

    def loss(context: Tensor) -> Tensor:
        return F.normalize(tower.encode(layout, context), dim=-1)[:, 0].square().sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grads = torch.vmap(torch.func.grad(loss))(contexts)
        inside = torch.vmap(lambda c: torch.vmap(loss)(c))(contexts[:, None])[:, 0]
    for i, context in enumerate(contexts):
        assert relative(grads[i], torch.func.grad(loss)(context)) < 1e-10
        assert relative(inside[i], loss(context)) < 1e-10


def test_bfloat16_runs_under_vmap_and_is_near_float32() -> None:
    tower = extract.text_tower(clip_model("clip"))
    half = tower.to(dtype=torch.bfloat16)
    context = random_context(False, torch.float32)
    exact = tower.encode(tower.layout(names_of(), 4), context)
    layout = half.layout(names_of(), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rough = torch.vmap(lambda c: half.encode(layout, c))(context.bfloat16()[None])[0]
    assert rough.dtype == torch.bfloat16
    assert half.weights["ln_final"].dtype == torch.float32
    assert relative(rough.float(), exact) < 0.05


def test_nothing_after_eot_and_no_prefix_twice_is_computed() -> None:
    tower = extract.text_tower(clip_model("clip"))
    suffixes = sum(len(name) + 2 for name in NAMES)  # name, period, EOT
    assert tower.layout(names_of(), 4, bucket_cost=0).num_rows == 4 + suffixes
    assert tower.layout(names_of(), 4, bucket_cost=1000).num_rows == 4 + 5 * 6
    specific = tower.layout(names_of(), 4, class_specific=True, bucket_cost=0)
    assert specific.num_rows == 5 * 4 + suffixes


def test_buckets_trade_padding_for_kernels() -> None:
    assert plan_buckets([3, 4, 3, 9], bucket_cost=0) == [3, 4, 3, 9]
    assert plan_buckets([3, 4, 3, 9], bucket_cost=3) == [4, 4, 4, 9]
    assert plan_buckets([3, 4, 3, 9], bucket_cost=100) == [9, 9, 9, 9]


def test_deep_prompts_replace_the_context_before_each_layer() -> None:
    model = clip_model("clip").double()
    tower = extract.text_tower(model)
    context = random_context(False, torch.float64)
    deep = torch.stack([context.flip(0), 3 * context])
    rows, _ = rows_of("end")
    x = model.token_embedding(rows)
    x = torch.cat([x[:, :1], context.expand(5, 4, 32), x[:, 5:]], 1) + model.positional_embedding
    for i, block in enumerate(model.transformer.resblocks):
        if i:
            x = torch.cat([x[:, :1], deep[i - 1].expand(5, 4, 32), x[:, 5:]], 1)
        x = block(x, attn_mask=model.attn_mask)
    x = model.ln_final(x)[torch.arange(5), rows.argmax(-1)] @ model.text_projection
    assert relative(tower.encode(tower.layout(names_of(), 4), context, deep), x) < 1e-10
    middle = tower.layout(names_of(), 4, position="middle")
    with pytest.raises(ConfigError, match="position 'end'"):
        tower.encode(middle, context, deep)


def test_prompts_without_a_name_or_without_a_context_work() -> None:
    model = clip_model("clip").double()
    tower = extract.text_tower(model)
    bare = NameTokens(("",), ((PERIOD,),), (0,), (BOS,), (EOS,), 0, 9)
    ours = tower.encode(tower.layout(bare, 4), tower.embed(torch.tensor(PHOTO)))
    row = torch.tensor([[BOS, *PHOTO, PERIOD, EOS] + [0] * 17])
    assert relative(ours, model.encode_text(row)) < 1e-10
    none = tower.encode(tower.layout(names_of(), 0), torch.zeros(0, 32, dtype=torch.float64))
    rows = [[BOS, *name, PERIOD, EOS] for name in NAMES]
    rows = [row + [0] * (24 - len(row)) for row in rows]
    assert relative(none, model.encode_text(torch.tensor(rows))) < 1e-10


def test_a_prompt_that_is_too_long_is_refused_by_class_count_and_limit() -> None:
    tower = extract.text_tower(clip_model("clip"))
    with pytest.raises(ConfigError) as error:
        tower.layout(names_of(), 18)
    assert error.value.faults == [
        "class 'class 2': its prompt has 25 tokens (5 of the name and period, 18 context, "
        "2 special) and the text tower takes 24: shorten the name or use fewer context tokens"
    ]


def test_a_context_of_the_wrong_shape_is_refused() -> None:
    tower = extract.text_tower(clip_model("clip"))
    layout = tower.layout(names_of(), 4, class_specific=True)
    with pytest.raises(ConfigError, match=r"\(4, 32\), the layout needs \(5, 4, 32\)"):
        tower.encode(layout, torch.zeros(4, 32))


def test_towers_that_cannot_be_expressed_say_why() -> None:
    for text, reason in (
        ({"scale_attn": True}, "CustomResidualAttentionBlock"),
        ({"embed_cls": True}, "class embedding"),
        ({"pool_type": "none"}, "pools by 'none'"),
    ):
        with pytest.raises(extract.NotExpressible, match=reason):
            extract.text_tower(clip_model("custom", **text))


def test_the_real_tokenizers_prompt_is_the_planned_one() -> None:
    tokenizer = open_clip.SimpleTokenizer(context_length=24)
    words = ("golden retriever", "St. Bernard (dog)", "jack-o'-lantern")
    ids = tuple(tuple(tokenizer.encode(word + ".")) for word in words)
    lengths = tuple(len(tokenizer.encode(word)) for word in words)
    names = NameTokens(words, ids, lengths, (49406,), (49407,), 0, 343)
    torch.manual_seed(0)
    model = CLIP(24, VISION, {**TEXT, "vocab_size": 49408}).eval()
    tower = extract.text_tower(model)
    context = tower.embed(torch.tensor(tokenizer.encode("a photo of a")))
    ours = tower.encode(tower.layout(names, 4), context)
    theirs = model.encode_text(tokenizer([f"a photo of a {word}." for word in words]))
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-5, rtol=1e-5)


def test_a_saved_tower_comes_back_equal(tmp_path: Path) -> None:
    tower = extract.text_tower(clip_model("siglip"))
    save_tower(tower, tmp_path / "text.safetensors")
    back = load_tower(tmp_path / "text.safetensors")
    assert back.facts == tower.facts
    assert set(back.weights) == set(tower.weights)
    assert all(torch.equal(back.weights[k], tower.weights[k]) for k in tower.weights)


LOAD = """
import re, sys
from pathlib import Path
from fl_core.backbones.text_tower import load_tower
def private_mb():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = private_mb()
tower = load_tower(Path(sys.argv[1]))
total = sum(float(w.sum()) for w in tower.weights.values())
heavy = [m for m in ("open_clip", "transformers", "timm", "torchvision") if m in sys.modules]
print(heavy, private_mb() - before < 16, sys.argv[1] in Path("/proc/self/maps").read_text())
"""


def test_loading_maps_the_file_and_imports_nothing_heavy(tmp_path: Path) -> None:
    tower = extract.text_tower(clip_model("clip"))
    big = {**tower.weights, "token_embedding": torch.zeros(500_000, 32)}  # 64 MB
    save_tower(FunctionalTower(tower.facts, big), tmp_path / "text.safetensors")
    command = [sys.executable, "-c", LOAD, str(tmp_path / "text.safetensors")]
    root = Path(__file__).parents[2]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    assert out.stdout.strip() == "[] True True"
