"""Random views: bounded crops by named draws, stored with a view axis, taken at random."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fl_core.errors import ConfigError
from fl_core.work import Moment, Training, plan_work
from scenarios.augment import Augmentation, _draw_box, view


def picture(width: int = 40, height: int = 30) -> Image.Image:
    draws = np.random.default_rng(3)
    return Image.fromarray(draws.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_a_view_depends_on_its_names_only() -> None:
    settings = Augmentation(views=2)
    same = [view(picture(), settings, 16, (0, 1, 5)) for _ in range(2)]
    other = view(picture(), settings, 16, (0, 2, 5))
    assert same[0].size == (16, 16)
    assert np.array_equal(np.array(same[0]), np.array(same[1]))
    assert not np.array_equal(np.array(same[0]), np.array(other))


def test_crops_stay_inside_and_keep_their_area_and_shape() -> None:
    rng = np.random.default_rng(0)
    boxes = [_draw_box((200, 150), 0.25, rng) for _ in range(500)]
    for left, upper, right, lower in boxes:
        assert 0 <= left < right <= 200
        assert 0 <= upper < lower <= 150
    width, height = (np.array([(r - x, b - y) for x, y, r, b in boxes])).T
    share, ratio = width * height / (200 * 150), width / height
    assert share.min() > 0.24
    assert share.max() > 0.9
    assert ratio.min() > 0.73
    assert ratio.max() < 1.36


def test_half_of_the_views_are_mirrored_and_none_without_flip() -> None:
    image = picture(32, 32)
    whole = np.array(image)

    def count_mirrored(flip: bool) -> int:
        settings = Augmentation(views=1, min_area=0.999, flip=flip)
        shown = [np.array(view(image, settings, 32, (0, 0, row))) for row in range(200)]
        return sum(
            int(
                np.abs(v.astype(int) - whole[:, ::-1]).mean() < np.abs(v.astype(int) - whole).mean()
            )
            for v in shown
        )

    assert count_mirrored(flip=False) == 0
    assert 70 < count_mirrored(flip=True) < 130


@pytest.mark.parametrize("values", [{"views": -1}, {"views": 2, "min_area": 1.0}])
def test_settings_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError):
        Augmentation(**values)  # type: ignore[arg-type]


def test_steps_take_every_view_and_their_draw_changes_no_batch() -> None:
    training = Training(local_epochs=4, batch_size=8)
    shards = [torch.arange(40), torch.arange(40, 50)]
    plain = plan_work(training, Moment(2, 5, 0), [3, 7], shards)
    work = plan_work(training, Moment(2, 5, 0), [3, 7], shards, num_views=4)
    assert torch.equal(plain.rows, work.rows)
    assert not plain.views.any()
    shown = work.views[0][work.mask[0] > 0]
    assert sorted(shown.unique().tolist()) == [0, 1, 2, 3]
    alone = plan_work(training, Moment(2, 5, 0), [3], shards[:1], num_views=4)
    assert torch.equal(alone.views[0], work.views[0])
