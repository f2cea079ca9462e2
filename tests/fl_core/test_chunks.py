"""Prompts of a few classes at a time: the same features and gradients, and less memory."""

import os
import subprocess
import sys

import pytest
import torch
from tower_toys import clip_model, names_of

from fl_core.backbones import extract
from fl_core.backbones.chunks import ChunkedTower
from fl_core.errors import ConfigError

TOLERANCE = 1e-12


@pytest.fixture(scope="module")
def towers():
    whole = extract.text_tower(clip_model("clip").double())
    return whole, ChunkedTower(whole, 2)  # five classes: chunks of 2, 2 and 1


def loss_of(tower, position, class_specific):
    layout = tower.layout(names_of(), 4, position=position, class_specific=class_specific)
    weights = torch.linspace(-1, 1, 5 * tower.embed_dim, dtype=torch.float64).view(5, -1)
    return lambda context: (tower.encode(layout, context).tanh() * weights).sum()


@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_features_and_gradients_of_a_group_are_those_of_all_classes_at_once(
    towers, position, class_specific
):
    shape = (3, 5, 4, 32) if class_specific else (3, 4, 32)
    group = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    pulls = [torch.func.grad_and_value(loss_of(t, position, class_specific)) for t in towers]
    (whole, value), (parts, same) = (torch.vmap(pull)(group) for pull in pulls)
    torch.testing.assert_close(same, value, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(parts, whole, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_second_derivative_is_refused_and_not_zero(towers):
    context = torch.randn(4, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    slope = torch.func.grad(loss_of(towers[1], "end", False))
    with pytest.raises(ConfigError, match="leave it out"):
        torch.func.grad(lambda c: slope(c).square().sum())(context)


def test_deep_prompts_get_their_gradients_too(towers):
    draws = torch.Generator().manual_seed(3)
    given = [torch.randn(*s, 4, 32, dtype=torch.float64, generator=draws) for s in ((), (2,))]

    def gradients(tower):
        layout = tower.layout(names_of(), 4)
        return torch.func.grad(
            lambda c, d: tower.encode(layout, c, d).square().sum(), argnums=(0, 1)
        )(*given)

    for whole, parts in zip(*(gradients(tower) for tower in towers), strict=True):
        torch.testing.assert_close(parts, whole, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_layout_of_another_tower_and_a_context_of_another_shape_are_refused(towers):
    whole, chunked = towers
    with pytest.raises(ConfigError, match="another kind of text tower"):
        chunked.encode(whole.layout(names_of(), 4), torch.zeros(4, 32))
    with pytest.raises(ConfigError, match=r"context has shape \(3, 32\)"):
        chunked.encode(chunked.layout(names_of(), 4), torch.zeros(3, 32))


MEMORY = """
import torch
from tower_toys import clip_model, names_of

from fl_core.backbones import extract
from fl_core.backbones.chunks import ChunkedTower
from fl_core.backbones.prompt_plan import NameTokens
from orchestrator.memory import peak_bytes

torch.set_num_threads(1)
whole, num = extract.text_tower(clip_model("clip", width=64)), 2_000
ids = tuple((1 + i % 50, 40) for i in range(num))
names = NameTokens(tuple(map(str, range(num))), ids, (1,) * num, (58,), (59,), 0, 9)
chunked = ChunkedTower(whole, 100)
peaks = []
for tower, own in ((chunked, names_of()), (chunked, names), (whole, names)):  # one to warm up
    layout = tower.layout(own, 4)
    torch.func.grad(lambda c: tower.encode(layout, c).sum())(torch.randn(4, 64))
    peaks.append(peak_bytes())
print(peaks[1] - peaks[0], peaks[2] - peaks[0])
"""


def test_chunks_need_a_fraction_of_the_memory():
    command = [sys.executable, "-c", MEMORY]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert not done.returncode, done.stderr
    parts, whole = map(int, done.stdout.split())
    assert parts < whole / 2
