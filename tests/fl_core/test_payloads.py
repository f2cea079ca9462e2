"""Floats that a client sends per round at the widths of ViT-B/16: the table of the methods."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from fl_core.backbones.adapted import AdaptedClip
from fl_core.backbones.language_tower import Adapter
from fl_core.federation import (
    Ditto,
    FedAvg,
    FedOA,
    FedOpt,
    Finetune,
    LocalOnly,
    Moon,
    PFedMe,
    RoundAverage,
    Scaffold,
)
from fl_core.learners import (
    BPL,
    DPFPL,
    IA3,
    VPT,
    ClipAdapter,
    CoCoOp,
    CoOp,
    FedCLIP,
    FedOTP,
    FedPGP,
    FedTPG,
    KgCoOp,
    LoraClip,
    MaPLe,
    PFedMoAP,
    Plot,
    Prefix,
    ProDA,
    ProGrad,
    PromptFolio,
    PromptSRC,
    PromptTuning,
)
from fl_core.learners.clip_adapter import ClipAdapterFrozen
from fl_core.learners.dpfpl import DPFPLFrozen
from fl_core.learners.fedtpg import FedTPGFrozen
from fl_core.learners.maple import MaPLeFrozen
from fl_core.learners.proda import ProDAFrozen
from fl_core.learners.prompts import Prompts, ReferencedPrompts
from fl_core.learners.promptsrc import PromptSRCFrozen
from fl_core.learners.text_model import TextModel
from fl_core.learners.vpt import VPTFrozen
from fl_core.seeds import generator

WIDTH, VISION_WIDTH = 512, 768

TOWER: Any = SimpleNamespace(width=VISION_WIDTH)


def prompts(num_tokens):
    """Only the facts that shapes depend on."""
    cpu = torch.device("cpu")
    tower = SimpleNamespace(width=WIDTH, embed_dim=WIDTH, device=cpu, dtype=torch.float32)
    layout = SimpleNamespace(num_tokens=num_tokens, num_classes=100)
    return Prompts(tower, layout, 100.0, None)  # type: ignore[arg-type]


def with_reference(num_tokens):
    return ReferencedPrompts(prompts(num_tokens), torch.zeros(100, WIDTH))


def language(layers=6, width=384, wide=1536):
    """MiniLM-L6: a tower with IA3's places, and a head that trains nothing."""
    facts = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": 12}
    with torch.device("meta"):  # shapes, without values
        body = BertModel(BertConfig(vocab_size=4, intermediate_size=wide, **facts))
    places = []
    for layer in range(layers):
        attention = f"encoder.layer.{layer}.attention"
        places += [Adapter(f"{attention}.self.{n}", width, width) for n in ("key", "value")]
        places.append(Adapter(f"{attention}.output.dense", width, width, before=True))
        places.append(Adapter(f"encoder.layer.{layer}.output.dense", wide, width, before=True))
    tower = SimpleNamespace(
        places=tuple(places),
        words=lambda: torch.zeros(1, width),
        body=body,
        device=torch.device("cpu"),
        dtype=torch.float32,
    )
    return TextModel(tower, 2, width, "mean", 1.0, names=torch.zeros(2, width))  # type: ignore[arg-type]


CASES = [
    (CoOp(num_tokens=4), prompts(4), 2_048),
    (CoOp(num_tokens=16), prompts(16), 16 * 512),
    (KgCoOp(num_tokens=4), with_reference(4), 2_048),
    (ProGrad(num_tokens=16), with_reference(16), 8_192),
    (FedPGP(num_tokens=16), with_reference(16), 8_192),
    (FedOTP(num_tokens=16), prompts(16), 8_192),
    (PromptFolio(num_tokens=16), prompts(16), 8_192),
    (PFedMoAP(num_tokens=16), prompts(16), 8_192),
    (DPFPL(num_tokens=16), DPFPLFrozen(prompts(16), torch.zeros(WIDTH, 8)), 8_192),
    (BPL(), prompts(4), 4 * 512 + 512 * 32 + 32 + 32 * 1024 + 1024),
    (BPL(conditional=False), prompts(4), 4 * 512 + 1024),
    (Plot(num_prompts=4, num_tokens=16), prompts(16), 4 * 16 * 512),
    (
        ProDA(num_prompts=32, num_tokens=16),
        ProDAFrozen(((32, prompts(16)),), prompts(16)),
        32 * 16 * 512,
    ),
    (CoCoOp(num_tokens=4), prompts(4), 35_360),
    (
        MaPLe(num_tokens=2, depth=9),
        MaPLeFrozen(prompts(2), TOWER),
        3_555_072,
    ),
    (VPT(), VPTFrozen(TOWER, torch.zeros(100, WIDTH), 100.0), 9 * 8 * 768),
    (
        PromptSRC(),
        PromptSRCFrozen(prompts(4), TOWER, torch.zeros(100, WIDTH)),
        9 * (4 * 512 + 4 * 768),
    ),
    (
        FedTPG(),
        FedTPGFrozen(prompts(4), torch.zeros(100, WIDTH), torch.zeros(100, WIDTH)),
        # query, three norms, projections of queries, of keys and values, of the output, GEGLU
        4 * 512 + 6 * 512 + 4 * 512**2 + 512 + 512 * 4096 + 4096 + 2048 * 512 + 512,
    ),
    (ClipAdapter(), ClipAdapterFrozen(torch.zeros(100, WIDTH), 100.0), 2 * 512 * 128),
    (
        LoraClip(),
        AdaptedClip(
            None,
            torch.zeros(100, WIDTH),
            TOWER,
            {"text": (WIDTH, range(12)), "vision": (VISION_WIDTH, range(12))},
            100.0,
        ),
        # 12 layers, 3 projections, rank 2, inputs and outputs of both towers
        12 * 3 * 2 * 2 * (512 + 768),
    ),
    (FedCLIP(), ClipAdapterFrozen(torch.zeros(100, WIDTH), 100.0), 525_312),
    (IA3(head="similarity"), language(), 6 * (3 * 384 + 1536)),
    (PromptTuning(head="similarity"), language(), 20 * 384),
    (Prefix(head="similarity"), language(), 10 * 6 * 2 * 384),
]


def floats(rule, learner, params):
    specs = learner.tensors(params)
    sent = rule.update_names(rule.scopes(specs, 0))
    down = rule.broadcast(rule.init_server(params, specs, 10))
    assert rule.name == "local_only" or sum(t.numel() for t in down.values()) == sum(
        down[name].numel() for name in sent
    )
    return sum(down[name].numel() for name in sent)


@pytest.mark.parametrize(("learner", "frozen", "expected"), CASES, ids=lambda x: str(x)[:12])
def test_a_client_sends_as_many_floats_as_its_paper_says(learner, frozen, expected):
    params = learner.init(frozen, generator(0, "init"))
    assert set(params) == set(learner.tensors(params))
    for rule in (
        FedAvg(),
        FedOpt(optimizer="adam"),
        Ditto(),
        Finetune(),
        FedOA(),
        Moon(),
        PFedMe(),
        RoundAverage(),
    ):
        assert floats(rule, learner, params) == expected
    assert floats(Scaffold(), learner, params) == 2 * expected
    assert floats(LocalOnly(), learner, params) == 0
