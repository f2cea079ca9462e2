"""What ``fedarena new learner`` writes: a whole learner that passes the laws, its test, its page.

``@NAME@``, ``@KIND@`` and ``@PAPER@`` stand for the learner's name, class and first line,
``@IMPORTS@`` for the sorted learners that its test needs.
"""

LEARNER = '''\
"""@PAPER@."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fl_core.backbones.clip import Clip
from fl_core.checks import check_fields
from fl_core.learners.base import masked_cross_entropy
from fl_core.learners.prompts import (
    ReferencedPrompts,
    class_features,
    first_context,
    prepare_referenced,
)
from fl_core.types import Batch, Params, Task, TensorSpec


@dataclass(frozen=True)
class @KIND@:
    """Cross entropy + weight * mean_c (1 - w_c . w_c^zs), w^zs of the data set's template.

    num_tokens: M. weight: of the added term; 0 is CoOp.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}
    inputs: ClassVar[tuple[str, ...]] = ("features",)
    groupable: ClassVar[bool] = True
    rows_at_once: ClassVar[int] = 8192
    transfers: ClassVar[bool] = True
    two_parts: ClassVar[bool] = False
    name: Literal["@NAME@"] = "@NAME@"
    num_tokens: int = 4
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, num_tokens=">= 1", weight=">= 0")

    def prepare(self, backbone: Clip, task: Task) -> ReferencedPrompts:
        return prepare_referenced(backbone, task, self.num_tokens)

    def init(self, frozen: ReferencedPrompts, generator: torch.Generator) -> Params:
        return {"context": first_context(frozen.prompts, generator)}  # [M, d_t]

    def tensors(self, params: Params) -> Mapping[str, TensorSpec]:
        return {"context": TensorSpec("shared")}

    def features(self, params: Params, frozen: ReferencedPrompts) -> Tensor:
        return class_features(frozen.prompts, params["context"])

    def loss(self, params: Params, frozen: ReferencedPrompts, batch: Batch) -> Tensor:
        w = self.features(params, frozen)  # [C, D]
        logits = frozen.prompts.scale * batch.inputs["features"] @ w.mT  # [B, C]
        cosines = (w * frozen.reference).sum(dim=-1)  # [C]
        return masked_cross_entropy(logits, batch) + self.weight * (1 - cosines).mean()

    def logits(self, params: Params, frozen: ReferencedPrompts, inputs: Params) -> Tensor:
        w = self.features(params, frozen)  # [C, D]
        return frozen.prompts.scale * inputs["features"] @ w.mT  # [B, C]
'''

TEST = '''\
"""@KIND@ against its formula in plain float64 NumPy."""

import numpy as np
import pytest
import torch
from clip_toys import CLASSES, in_float64, problem_of, small_clip
from torch.nn import functional as F

from fl_core.learners import @IMPORTS@
from fl_core.types import Task


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return in_float64(small_clip(tmp_path_factory.mktemp("clip")))


def batch_of(problem):
    """Seven examples and two rows that only fill up."""
    rows = torch.cat([torch.arange(7), torch.zeros(2, dtype=torch.int64)])
    return problem.batch(rows, torch.cat([torch.ones(7), torch.zeros(2)]))


def test_the_loss_is_the_formula_of_the_paper(clip):
    problem = problem_of(@KIND@(weight=3.0), clip)
    params = {name: tensor + 0.1 for name, tensor in problem.initial.items()}
    layout = clip.prompt_layout(CLASSES, num_tokens=len(params["context"]))
    w = F.normalize(clip.text.encode(layout, params["context"]), dim=-1).numpy()
    zs = ZeroShot().prepare(clip, Task(CLASSES)).class_features.numpy()
    f, y = problem.inputs["features"][:7].numpy(), problem.labels[:7].numpy()
    logits = clip.scale * f @ w.T
    entropy = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(7), y]
    expected = entropy.mean() + 3.0 * (1 - (w * zs).sum(axis=1)).mean()
    loss = problem.learner.loss(params, problem.frozen, batch_of(problem))
    assert float(loss) == pytest.approx(expected, rel=1e-9)


def test_without_its_term_it_is_coop(clip):
    ours, coop = problem_of(@KIND@(weight=0.0), clip), problem_of(CoOp(num_tokens=4), clip)
    batch = batch_of(coop)
    losses = [p.learner.loss(coop.initial, p.frozen, batch) for p in (ours, coop)]
    torch.testing.assert_close(*losses)
'''

SETTING = """\
# @PAPER@: change what follows to the paper's own setting.
# Edit scenario.dataset: the folder that docs/data.md describes.
name: @NAME@_paper
backbone: {model: ViT-B-16-quickgelu, pretrained: openai}
learner: {name: @NAME@}
federation: {name: fedavg, rounds: 50}
training:
  optimizer: {name: sgd, lr: 0.002, momentum: 0.9, weight_decay: 5.0e-4}
  batch_size: 32
scenario:
  dataset: oxford_pets:/data/coop
  num_clients: 10
  shots: 16
  partition: iid
"""

PAGE = """\
# @NAME@

@PAPER@.

- **Trains** a context [M, d_t].
- **Sends and averages** it.
- **Formula:** cross entropy on s f wᵀ + `weight` · mean_c (1 − cos(w_c, w_c^zs)).

```sh
fedarena run examples/promptfl.yaml learner=@NAME@
```

## Measured

Not yet: give it a row in [the table of all methods](index.md#accuracy-on-packaged-data), and here.
"""
