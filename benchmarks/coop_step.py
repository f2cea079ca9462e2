"""One CoOp training step, plainly through open_clip and with fedarena's text tower.

    OMP_NUM_THREADS=1 python benchmarks/coop_step.py --out coop_step.json

Random weights (only shapes matter for time), C = 100 class names, M = 16, batch 32, fp32. The two
kinds of step alternate in one process, so that a busy machine slows both.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor
from torch.nn import functional as F

from fl_core.backbones import extract
from fl_core.backbones.prompt_plan import PromptLayout
from fl_core.backbones.text_tower import FunctionalTower
from fl_core.backbones.tokens import name_tokens

WORDS = (
    "goldfish, great white shark, tiger shark, hammerhead, electric ray, rooster, ostrich, "
    "American goldfinch, house finch, indigo bunting, American robin, bulbul, jay, magpie, "
    "great grey owl, fire salamander, smooth newt, axolotl, American bullfrog, tree frog, "
    "loggerhead sea turtle, leatherback sea turtle, box turtle, green iguana, Komodo dragon, "
    "Nile crocodile, American alligator, king cobra, green mamba, tarantula, centipede, black "
    "grouse, peacock, quail, African grey parrot, macaw, sulphur-crested cockatoo, lorikeet, "
    "toucan, mallard, black swan, Asian elephant, wallaby, koala, jellyfish, sea anemone, "
    "snail, Dungeness crab, American lobster, hermit crab, white stork, flamingo, pelican, king "
    "penguin, grey whale, killer whale, sea lion, Chihuahua, Maltese, Shih Tzu, beagle, "
    "bloodhound, Afghan hound, Irish wolfhound, Yorkshire terrier, golden retriever, Labrador "
    "retriever, Border collie, German shepherd dog, boxer, Great Dane, St. Bernard, husky, pug, "
    "corgi, standard poodle, grey wolf, red fox, tabby cat, Siamese cat, lion, tiger, brown "
    "bear, ladybug, honey bee, grasshopper, monarch butterfly, starfish, guinea pig, zebra, "
    "hippopotamus, hot air balloon, airliner, ambulance, fire truck, acoustic guitar, grand "
    "piano, bookcase, coffee mug, traffic light"
)
SCALE = 100.0  # trained CLIPs' exp(logit_scale)
NAMES = tuple(word.strip() for word in WORDS.split(","))


def main() -> None:
    parser = argparse.ArgumentParser(description="one CoOp training step, two ways")
    parser.add_argument("--models", nargs="*", default=["ViT-B-32", "ViT-B-16"])
    parser.add_argument("--widths", nargs="*", type=int, default=[64, 128, 256, 512])
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    logging.disable(logging.WARNING)  # open_clip says that random weights are random
    result: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    machine = platform.processor() or platform.machine()
    result |= {"machine": machine, "cpus": os.cpu_count(), "load": os.getloadavg()[0]}
    result |= {"classes": len(NAMES), "context": 16, "batch": 32, "device": args.device}
    if args.device.startswith("cuda"):
        result["machine"] = torch.cuda.get_device_name(args.device)
    result["single"] = [single_step(name, args.repeats, args.device) for name in args.models]
    grouped = [grouped_step(w, args.clients, args.repeats, args.device) for w in args.widths]
    result["grouped"] = grouped
    show(result)
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


def single_step(name: str, repeats: int, device: str) -> dict[str, Any]:
    """(a) image encoder + whole token rows through open_clip, (b) ours on cached features."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, device=device).eval().requires_grad_(False)
    tower = extract.text_tower(model)
    tokenizer = open_clip.get_tokenizer(name)
    layout = tower.layout(name_tokens(tokenizer, NAMES), 16)
    context = 0.02 * torch.randn(16, tower.width, device=device)
    images = torch.randn(32, 3, 224, 224, device=device)
    labels = torch.randint(len(NAMES), (32,), device=device)
    with torch.no_grad():
        features = F.normalize(model.encode_image(images), dim=-1)
        ids = tokenizer([f"{'x ' * 16}{word}." for word in NAMES]).to(device)
        embedded = model.token_embedding(ids)

    def plain() -> Tensor:
        with torch.no_grad():
            seen = F.normalize(model.encode_image(images), dim=-1)
        leaf = context.clone().requires_grad_()
        x = torch.cat([embedded[:, :1], leaf.expand(len(ids), -1, -1), embedded[:, 17:]], 1)
        x = model.transformer(x + model.positional_embedding, attn_mask=model.attn_mask)
        x = model.ln_final(x)[torch.arange(len(ids), device=device), ids.argmax(-1)]
        text = F.normalize(x @ model.text_projection, dim=-1)
        return torch.autograd.grad(F.cross_entropy(SCALE * seen @ text.mT, labels), leaf)[0]

    loss = coop_loss(tower, layout, features, labels)

    def ours() -> Tensor:
        leaf = context.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf)[0]

    difference = float((ours() - plain()).norm() / plain().norm())
    plain_s, ours_s = alternate([plain, ours], repeats, device)
    return {
        "model": name,
        "plain_s": plain_s,
        "ours_s": ours_s,
        "ratio": plain_s / ours_s,
        "relative_gradient_difference": difference,
        "rows": layout.num_rows,
        "plain_rows": ids.numel(),
    }


def grouped_step(width: int, clients: int, repeats: int, device: str) -> dict[str, Any]:
    """The gradients of a group of clients: one vmap against one after the other."""
    tower, layout = small_tower(width, device)
    contexts = 0.02 * torch.randn(clients, 16, width, device=device)
    features = F.normalize(torch.randn(clients, 32, width, device=device), dim=-1)
    labels = torch.randint(len(NAMES), (clients, 32), device=device)

    def step(context: Tensor, f: Tensor, y: Tensor) -> Tensor:
        return torch.func.grad(coop_loss(tower, layout, f, y))(context)

    def one_by_one() -> Tensor:
        triples = zip(contexts, features, labels, strict=True)
        return torch.stack([eager(c, coop_loss(tower, layout, f, y)) for c, f, y in triples])

    def together() -> Tensor:
        return torch.vmap(step)(contexts, features, labels)

    difference = float((together() - one_by_one()).norm() / one_by_one().norm())
    single_s, group_s = alternate([one_by_one, together], repeats, device)
    return {
        "width": width,
        "clients": clients,
        "one_by_one_s": single_s,
        "together_s": group_s,
        "together_over_single": group_s / single_s,
        "relative_gradient_difference": difference,
    }


def small_tower(width: int, device: str) -> tuple[FunctionalTower, PromptLayout]:
    """A random text tower of 4 layers, and the layout of NAMES behind 16 context vectors."""
    torch.manual_seed(0)
    text = {"context_length": 77, "vocab_size": 49408, "width": width, "layers": 4}
    text["heads"] = max(width // 64, 1)
    vision = {"layers": 1, "width": 64, "patch_size": 32, "image_size": 32}
    model = open_clip.model.CLIP(width, vision, text).to(device).eval().requires_grad_(False)
    tower = extract.text_tower(model)
    layout = tower.layout(name_tokens(open_clip.get_tokenizer("ViT-B-32"), NAMES), 16)
    return tower, layout


def eager(context: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    leaf = context.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def coop_loss(
    tower: FunctionalTower, layout: PromptLayout, features: Tensor, labels: Tensor
) -> Callable[[Tensor], Tensor]:
    def loss(context: Tensor) -> Tensor:
        text = F.normalize(tower.encode(layout, context), dim=-1)
        return F.cross_entropy(SCALE * features @ text.mT, labels)

    return loss


def alternate(functions: list[Callable[[], Tensor]], repeats: int, device: str) -> list[float]:
    """Median seconds of each function, called in turn."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, seconds in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


def show(result: dict[str, Any]) -> None:
    print({k: v for k, v in result.items() if k not in ("single", "grouped")})
    for key in ("single", "grouped"):
        rows = result[key]
        if not rows:
            continue
        print("\n" + "  ".join(f"{name:>18.18}" for name in rows[0]))
        for row in rows:
            cells = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values())
            print("  ".join(f"{cell:>18}" for cell in cells))
    better = [row["width"] for row in result["grouped"] if row["together_over_single"] < 1]
    print(f"\ngrouping pays at widths {better or 'none'} of those measured")


if __name__ == "__main__":
    main()
