"""Parts of a config that do not go together, told before anything is loaded.

Each fault comes with the paths that it looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fl_core.backbones.union import gives, modality
from orchestrator.config import ExperimentConfig


def feedback_faults(config: ExperimentConfig) -> Iterator[tuple[Sequence[str], str]]:
    terms, federation = config.communication, config.federation
    why = federation.feedback_fault()
    if why and terms.uplink.feedback:
        path = "communication.codec" if terms.up is None else "communication.up"
        yield (
            ("federation", "communication"),
            f"{path} = {terms.uplink.name} is not allowed with federation={federation.name}: what "
            f"it leaves out of a client's update is added to the client's next one, and {why}. Use "
            f"{path}=int8, bf16, fp16 or fp32, or another federation.",
        )


def backbone_faults(config: ExperimentConfig) -> Iterator[tuple[Sequence[str], str]]:
    learner, backbone = config.learner, config.backbone
    missing = [kind for kind in learner.inputs if not gives(backbone, kind)]
    if missing:
        reads = modality(backbone)
        fitting = "transformers" if reads == "image" else "open_clip"
        yield (
            ("learner", "backbone"),
            f"learner = {learner.name} reads {', '.join(missing)}, which backbone = "
            f"{backbone.name}, a model of {reads}s, does not give: set backbone={fitting}, or "
            f"another learner.",
        )
    if config.augmentation.views and modality(backbone) == "text":
        yield (
            ("augmentation", "backbone"),
            f"augmentation.views = {config.augmentation.views} is for images: set "
            "augmentation.views=0.",
        )
    if config.training.classes_at_once and modality(backbone) == "text":
        yield (
            ("training.classes_at_once", "backbone"),
            f"training.classes_at_once = {config.training.classes_at_once} is for prompts on a "
            "CLIP: leave it out with a language model.",
        )
