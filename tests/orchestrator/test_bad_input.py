"""What a user gets wrong is told with place, value, what is allowed, what to do; nothing runs.

Unknown keys, wrong types and several faults at once stand in test_loading.py; an unreachable
tracking server in test_tracking.py; partitions and images in tests/scenarios; too many slices in
test_executors.py; a resume with a changed config in test_recovery.py.
"""

import shutil

import pytest

from cluster.slices import check_placement, choose_num_slots, count_slices, slice_bundle
from fl_core.errors import ConfigError, DataError, ResourceError
from orchestrator.experiment import run_folder
from orchestrator.run import run_experiments


def refused(config, kind, *words):
    with pytest.raises(kind) as error:
        run_experiments([config])
    for word in words:
        assert word in str(error.value)
    assert not (run_folder(config) / "rounds").exists()


def test_an_unknown_backbone_names_the_nearest(make_config):
    config = make_config("backbone.model=ViT-B-61", "backbone.pretrained=openai")
    refused(config, ConfigError, "'ViT-B-61'", "Did you mean", "'ViT-B-16'")


def test_an_unknown_data_set_names_the_nearest(make_config):
    refused(make_config("scenario.dataset=emoji_corse"), DataError, "emoji_corse", "'emoji_coarse'")


def test_an_unreadable_image_is_named(make_config, colours, tmp_path):
    copy = tmp_path / "images"
    shutil.copytree(colours, copy)
    (copy / "train" / "red" / "3.png").write_bytes(b"not a picture")
    refused(make_config(f"scenario.dataset={copy}"), DataError, "3.png")


def test_more_clients_than_examples_says_what_would_work(make_config):
    refused(make_config("scenario.num_clients=500"), DataError, "500")


def test_a_class_without_a_training_example_is_named(make_config, colours, tmp_path):
    copy = tmp_path / "images"
    shutil.copytree(colours, copy)
    shutil.rmtree(copy / "train" / "blue")
    (copy / "train" / "blue").mkdir()
    refused(make_config(f"scenario.dataset={copy}"), DataError, "blue")


def test_no_write_access_is_told_with_the_place(make_config, tmp_path):
    (tmp_path / "file").write_text("")
    config = make_config(f"folder={tmp_path / 'file' / 'runs'}")
    refused(config, ResourceError, "file", "folder")


@pytest.mark.parametrize("learner", ["kgcoop", "cocoop", "bpl"])
def test_more_tokens_than_the_words_have_names_both(make_config, learner):
    config = make_config(f"learner={learner}", "learner.num_tokens=16")
    refused(config, ConfigError, "num_tokens = 16", "'a photo of a'", "4 tokens", "init_text=null")


def test_a_context_that_is_too_long_names_the_class_and_the_limit(make_config):
    refused(make_config("learner.num_tokens=40"), ConfigError, "40", "24")


@pytest.mark.parametrize(
    ("nodes", "bundle", "room"),
    [
        ([{"CPU": 4.0}], slice_bundle(1, 0, 0), 4),
        ([{"CPU": 4.0, "GPU": 1.0}], slice_bundle(0.5, 0.25, 0), 4),
        ([{"CPU": 3.0}, {"CPU": 1.0}], slice_bundle(2, 0, 0), 1),
        ([{"CPU": 8.0, "memory": 3 * 2.0**30}], slice_bundle(1, 0, 1.0), 3),
        ([{"CPU": 0.3}], slice_bundle(0.1, 0, 0), 3),
        ([], slice_bundle(1, 0, 0), 0),
    ],
)
def test_a_slice_never_spans_two_nodes(nodes, bundle, room):
    assert count_slices(nodes, bundle) == room
    check_placement(room, nodes, bundle)
    with pytest.raises(ResourceError, match=rf"asked for {room + 1} .*room for {room}"):
        check_placement(room + 1, nodes, bundle)


def test_auto_takes_as_many_actors_as_can_be_busy():
    assert choose_num_slots("auto", 100, num_groups=3, available=8) == 3
    assert choose_num_slots("auto", 100, num_groups=30, available=8) == 8
    assert choose_num_slots(4, 10, num_groups=1, available=99) == 3
    assert choose_num_slots(1, 10, num_groups=10, available=2) == 10
