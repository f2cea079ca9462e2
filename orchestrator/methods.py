"""Published names: ``method: kgcoop`` in a config stands for a learner, a rule and their settings.

A name is a shorthand and no third kind of thing: it is written out before the config is read, and
every setting given beside it wins. Only what differs from the fields' own defaults stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fl_core.errors import did_you_mean

Note = Callable[[str, str], Any]
"""Takes down a fault: the path of the setting, and what is wrong with it."""


@dataclass(frozen=True)
class Method:
    """learner, federation, backbone: names, or settings with a name. training: settings.

    line: the paper.
    """

    line: str
    learner: str | Mapping[str, Any]
    federation: str | Mapping[str, Any] = "fedavg"
    training: Mapping[str, Any] | None = None
    backbone: str | None = None


def _sgd(lr: float, **training: Any) -> dict[str, Any]:
    return {"optimizer": {"name": "sgd", "lr": lr}, **training}


def _on_texts(line: str, federation: str = "fedavg") -> Method:
    """LoRA on a language model, with AdamW."""
    return Method(line, "lora", federation, {"optimizer": {"name": "adamw"}}, "transformers")


METHODS: Mapping[str, Method] = {
    "promptfl": Method("PromptFL (Guo et al., 2022, arXiv:2208.11625)", "coop"),
    "cocoop": Method("CoCoOp (Zhou et al., 2022, arXiv:2203.05557)", "cocoop"),
    "kgcoop": Method("KgCoOp (Yao et al., 2023, arXiv:2303.13283)", "kgcoop"),
    "prograd": Method("ProGrad (Zhu et al., 2023, arXiv:2205.14865)", "prograd"),
    "proda": Method("ProDA (Lu et al., 2022, arXiv:2205.03340)", "proda"),
    "plot": Method("PLOT (Chen et al., 2023, arXiv:2210.01253)", "plot"),
    "maple": Method(
        "MaPLe (Khattak et al., 2023, arXiv:2210.03117)", "maple", training=_sgd(0.0035)
    ),
    "vpt": Method("VPT (Jia et al., 2022, arXiv:2203.12119)", "vpt"),
    "promptsrc": Method(
        "PromptSRC (Khattak et al., 2023, arXiv:2307.06948)",
        "promptsrc",
        "round_average",
        _sgd(0.0025),
    ),
    "fedtpg": Method(
        "FedTPG (Qiu et al., 2024, arXiv:2310.06123)",
        "fedtpg",
        {"name": "fedavg", "rounds": 500},
        _sgd(0.003),
    ),
    "clip_lora": Method(
        "CLIP-LoRA (Zanella and Ben Ayed, 2024, arXiv:2405.18541)",
        "lora_clip",
        training={"optimizer": {"name": "adamw", "lr": 2e-4, "weight_decay": 0.01}},
    ),
    "clip_adapter": Method("CLIP-Adapter (Gao et al., 2021, arXiv:2110.04544)", "clip_adapter"),
    "fedclip": Method(
        "FedCLIP (Lu et al., 2023, arXiv:2302.13485)",
        "fedclip",
        {"name": "fedavg", "weights": "uniform"},
    ),
    "fedotp": Method("FedOTP (Li et al., 2024, arXiv:2403.00041)", "fedotp", training=_sgd(0.001)),
    "fedpgp": Method(
        "FedPGP (Cui et al., 2024, arXiv:2405.09771)",
        "fedpgp",
        {"name": "fedavg", "rounds": 25},
        _sgd(0.001, local_epochs=2),
    ),
    "promptfolio": Method("PromptFolio (Pan et al., 2024, arXiv:2409.19610)", "promptfolio"),
    "pfedmoap": Method("pFedMoAP (Luo et al., 2025, arXiv:2410.10114)", "pfedmoap", "exchange"),
    "dpfpl": Method("DP-FPL (Tran et al., 2025, arXiv:2501.13904)", "dpfpl"),
    "bpl": Method("BPL (Derakhshani et al., 2023, arXiv:2210.02390)", "bpl"),
    "fedit": _on_texts("FedIT (Zhang et al., 2023, arXiv:2305.05644)"),
    "ffa_lora": _on_texts("FFA-LoRA (Sun et al., 2024, arXiv:2403.12313)", "ffa_lora"),
    "fedsa_lora": _on_texts("FedSA-LoRA (Guo et al., 2024, arXiv:2410.01463)", "fedsa_lora"),
    "rolora": _on_texts("RoLoRA (Chen et al., 2025, arXiv:2502.01755)", "rolora"),
    "fedex_lora": _on_texts("FedEx-LoRA (Singhal et al., 2024, arXiv:2410.09432)", "fedex_lora"),
    "flora": _on_texts("FLoRA (Wang et al., 2024, arXiv:2409.05976)", "flora"),
    "flexlora": _on_texts("FlexLoRA (Bai et al., 2024, arXiv:2402.11505)", "flexlora"),
    "hetlora": _on_texts("HetLoRA (Cho et al., 2024, arXiv:2401.06432)", "hetlora"),
    "feddpa_f": _on_texts("FedDPA-F (Yang et al., 2024, arXiv:2403.19211)", "feddpa_f"),
    "feddpa_t": _on_texts("FedDPA-T (Yang et al., 2024, arXiv:2403.19211)", "feddpa_t"),
    "perada": _on_texts("PerAda (Xie et al., 2023, arXiv:2302.06637), without KD", "perada"),
    "fedlora": _on_texts("FedLoRA, tuned after FedAvg (as in arXiv:2505.01075)", "finetune"),
    "fediir": Method("FedIIR (Guo et al., 2023, PMLR 202), on prompts", "coop", "fediir"),
    "fedoa": Method("FedOA (Yang et al., 2025, arXiv:2505.01075), on prompts", "coop", "fedoa"),
}


def settings_of(name: str) -> dict[str, Any]:
    """What a name stands for, as sections of a config with a ``name`` each."""
    method = METHODS[name]
    found = {"learner": _named(method.learner), "federation": _named(method.federation)}
    if method.training:
        found["training"] = dict(method.training)
    if method.backbone:
        found["backbone"] = _named(method.backbone)
    return found


def listed() -> list[tuple[str, str]]:
    """(name, paper and pair) of every method."""
    rows = []
    for name, method in METHODS.items():
        pair = (_named(method.learner)["name"], _named(method.federation)["name"])
        rows.append((name, f"{method.line}: {' with '.join(pair)}"))
    return rows


def write_out(raw: Any, note: Note) -> Any:
    """Plain values of a config with the settings of its ``method`` in that key's place.

    A fault is noted, and leaves the rest as it was given.
    """
    if not isinstance(raw, Mapping) or "method" not in raw:
        return raw
    rest = {key: value for key, value in raw.items() if key != "method"}
    name = raw["method"]
    if not isinstance(name, str) or name not in METHODS:
        note("method", f"method = {name!r} is not known.{did_you_mean(str(name), METHODS)}")
        return rest
    settings, conflict = settings_of(name), False
    for part in ("learner", "federation"):
        given, wanted = _named(rest.get(part) or {}).get("name"), settings[part]["name"]
        if given not in (None, wanted):
            conflict = True
            note(
                part,
                f"{part} = {given!r} contradicts method = {name!r}, which is {part}={wanted}: "
                f"leave out one of the two. To combine freely, name learner and federation.",
            )
    return rest if conflict else _below(settings, rest)


def _named(section: Any) -> dict[str, Any]:
    if isinstance(section, str):
        return {"name": section}
    return dict(section) if isinstance(section, Mapping) else {}


def _below(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given``, with ``defaults`` where it says nothing.

    A section that names another type than its default takes no setting of it.
    """
    merged = {**defaults, **given}
    for key, default in defaults.items():
        value = given.get(key)
        if not isinstance(default, Mapping) or key not in given:
            continue
        if value is None:  # a section whose lines are all commented out
            merged[key] = default
        elif isinstance(value, str | Mapping):
            section = _named(value)
            same = section.get("name", default.get("name")) == default.get("name")
            merged[key] = _below(default, section) if same else section
    return merged
