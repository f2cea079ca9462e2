"""Published names in a config: what they stand for, what wins, and what is refused."""

import pytest
from click.testing import CliRunner

from fl_core.errors import ConfigError
from fl_core.learners import LEARNERS, CoOp, FedPGP
from orchestrator.cli import main
from orchestrator.loading import config_hash, load_config, resolve, to_dict
from orchestrator.methods import METHODS, settings_of


@pytest.mark.parametrize("name", METHODS)
def test_a_name_loads_as_the_pair_that_it_stands_for(name):
    config, settings = resolve(load_config({"method": name})), settings_of(name)
    assert config.learner.name == settings["learner"]["name"]
    assert config.federation.name == settings["federation"]["name"]
    assert config_hash(config) == config_hash(resolve(load_config(settings)))


NOT_PUBLISHED_AS_FEDERATED = {"zero_shot", "ia3", "prefix", "prompt_tuning"}


def test_every_learner_that_was_published_as_federated_has_a_name():
    found = {settings_of(name)["learner"]["name"] for name in METHODS}
    assert found == {kind().name for kind in LEARNERS} - NOT_PUBLISHED_AS_FEDERATED


def test_promptfl_is_coop_with_fedavg_and_fedpgp_has_its_own_training():
    assert load_config({"method": "promptfl"}) == load_config({"learner": "coop"})
    fedpgp = load_config({"method": "fedpgp"})
    assert fedpgp.learner == FedPGP()
    assert (fedpgp.federation.rounds, fedpgp.training.local_epochs) == (25, 2)
    assert fedpgp.training.optimizer.lr == 0.001
    assert fedpgp.training.optimizer.momentum == 0.9


def test_settings_beside_a_name_win_in_the_file_and_on_the_command_line(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        "method: fedpgp\nlearner: {rank: 4}\ntraining: {optimizer: {momentum: 0.0}}\nfederation:\n"
    )
    config = load_config(file, ["federation.rounds=3", "training.optimizer.lr=0.5"])
    assert config.learner == FedPGP(rank=4)
    assert (config.federation.rounds, config.training.local_epochs) == (3, 2)
    assert (config.training.optimizer.lr, config.training.optimizer.momentum) == (0.5, 0.0)
    assert load_config(file, ["method=promptfl", "learner={num_tokens: 4}"]).learner == CoOp(
        num_tokens=4
    )


def test_a_name_and_its_own_learner_do_not_contradict_each_other():
    both = {"method": "fedpgp", "learner": "fedpgp", "federation": {"name": "fedavg"}}
    assert load_config(both) == load_config({"method": "fedpgp"})


def test_another_optimiser_takes_no_setting_of_the_papers():
    config = load_config({"method": "maple", "training": {"optimizer": {"name": "adamw"}}})
    assert config.training.optimizer.name == "adamw"
    assert config.training.optimizer.lr == 3e-4


def test_a_learner_or_rule_that_contradicts_the_name_is_refused_with_every_other_fault():
    raw = {"method": "kgcoop", "learner": "coop", "federation": "fedprox", "seeed": 1}
    with pytest.raises(ConfigError) as error:
        load_config(raw)
    text = str(error.value)
    assert "learner = 'coop' contradicts method = 'kgcoop', which is learner=kgcoop" in text
    assert "federation = 'fedprox' contradicts method = 'kgcoop'" in text
    assert "seeed" in text
    with pytest.raises(ConfigError, match="learner = 'maple' contradicts"):
        load_config({"method": "kgcoop"}, ["learner=maple"])


@pytest.mark.parametrize("name", ["kgcop", 3, None, ["kgcoop"]])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ConfigError, match=r"method = .* is not known"):
        load_config({"method": name})


def test_a_near_miss_gets_a_hint():
    with pytest.raises(ConfigError, match="kgcoop"):
        load_config({"method": "kgcop"})


def test_the_stored_config_is_written_out():
    assert "method" not in to_dict(load_config({"method": "kgcoop"}))


def test_the_table_is_not_changed_by_reading():
    before = repr(METHODS)
    load_config({"method": "fedpgp", "learner": {"rank": 2}}, ["training.optimizer.lr=1.0"])
    assert repr(METHODS) == before


def test_names_are_listed_with_paper_and_pair():
    result = CliRunner().invoke(main, ["list", "methods"])
    assert result.exit_code == 0
    assert all(name in result.output for name in METHODS)
    assert "arXiv:2208.11625" in result.output
