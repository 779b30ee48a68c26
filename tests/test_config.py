"""Options: an error names a wrong option, what was given and what was expected; correct options have their effect."""

import dataclasses
import inspect
import itertools
import math
import re

import numpy as np
import pytest

from rl_lnlstm import PPO, PPOConfig, UserError
from rl_lnlstm.commands.options import parse
from rl_lnlstm.config import make_config
from rl_lnlstm.option_types import describe_options
from rl_lnlstm.other_names import OTHER_NAMES

PUBLIC_NAMES = [
    *("env_id", "total_timesteps", "num_envs", "num_steps", "learning_rate", "anneal_lr", "gamma", "gae_lambda"),
    *("num_minibatches", "update_epochs", "norm_adv", "clip_coef", "clip_vloss", "ent_coef", "vf_coef"),
    *("max_grad_norm", "target_kl", "seed", "sequence_length", "units"),
    *("normalize_observations", "normalize_rewards"),
]
WRONG = [
    *((name, value) for name in ("num_envs", "num_steps", "num_minibatches") for value in (0, -8)),
    *((name, value) for name in ("update_epochs", "units", "total_timesteps") for value in (0, -1)),
    *((name, value) for name in ("gamma", "gae_lambda") for value in (-0.01, 1.01, math.nan)),
    *((name, value) for name in ("learning_rate", "clip_coef", "max_grad_norm") for value in (0.0, -1.0, math.nan)),
    *((name, value) for name in ("ent_coef", "vf_coef") for value in (-0.1, math.nan, math.inf)),
    ("target_kl", 0.0),
    ("target_kl", -0.1),
    ("seed", -1),
    *(("sde_sample_freq", value) for value in (0, -2)),
]
NOT_NUMBERS = [(name, "high") for name in ("gamma", "learning_rate", "ent_coef", "target_kl", "sequence_length")]


def test_the_names_that_users_rely_on():
    assert set(PUBLIC_NAMES) <= {field.name for field in dataclasses.fields(PPOConfig)}


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_out_of_range(name, value):
    with pytest.raises(UserError) as caught:
        PPOConfig(**{name: value})
    message = str(caught.value)
    assert message.startswith(name)
    assert repr(value) in message
    assert any(expected in message for expected in ("at least", "between 0 and 1", "greater than 0"))


@pytest.mark.parametrize("name", ["num_envs", "num_steps", "update_epochs", "units", "seed"])
@pytest.mark.parametrize("value", [2.5, 8.0, "8", None])
def test_counts_are_integers(name, value):
    with pytest.raises(UserError, match=rf"^{name} must be an integer of at least [01], got {value!r}"):
        PPOConfig(**{name: value})


@pytest.mark.parametrize(("name", "value"), NOT_NUMBERS)
def test_not_a_number(name, value):
    with pytest.raises(UserError, match=rf"{name} must .* got .*'high'"):
        PPOConfig(**{name: value})


def test_numpys_integers_are_integers():
    config = PPOConfig(num_envs=np.int64(4), num_steps=np.int32(8), seed=np.int64(3))
    assert (config.num_envs, config.num_steps, config.seed) == (4, 8, 3)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("lerning_rate", "learning_rate"), ("n_steps", "num_steps"), ("lambda", "gae_lambda"), ("clip", "clip_coef")],
)
def test_an_unknown_name_tells_near_ones(wrong, right):
    for attempt in (make_config, lambda **options: PPO("MlpLnLstmPolicy", "CartPole-v1", **options)):
        with pytest.raises(UserError) as caught:
            attempt(**{wrong: 1})
        assert wrong in str(caught.value)
        assert right in str(caught.value)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    {
        **{"n_steps": "num_steps", "n_epochs": "update_epochs", "batch_size": "num_minibatches", "n_envs": "num_envs"},
        **{
            "clip_range": "clip_coef",
            "lstm_hidden_size": "units",
            "n_lstm_layers": "num_layers",
            "lr": "learning_rate",
        },
        **{"enable_critic_lstm": "shared_lstm", "policy_kwargs": "units", "verbose": "progress_bar"},
        **{"device": "TensorFlow", "tensorboard_log": "--run-dir", "minibatch_size": "num_minibatches"},
        **{"num_iterations": "total_timesteps", "lam": "gae_lambda"},
    }.items(),
)
def test_names_of_other_libraries_are_answered_with_ours_in_one_line(theirs, ours):
    with pytest.raises(UserError, match=f"unknown option '{theirs}': .*{ours}") as caught:
        PPO("auto", "CartPole-v1", **{theirs: 1})
    assert len(str(caught.value)) < 150


def test_names_of_other_libraries_are_none_of_ours():
    fields = {field.name: field for field in dataclasses.fields(PPOConfig)}
    assert not OTHER_NAMES.keys() & fields.keys()


def test_an_unknown_name_that_is_like_none_tells_them_all():
    with pytest.raises(UserError) as caught:
        make_config(zzzzz=1)
    assert all(name in str(caught.value) for name in PUBLIC_NAMES)


@pytest.mark.parametrize("length", [0, -4, 3, 64])
def test_sequence_length_divides_num_steps(length):
    with pytest.raises(UserError, match="sequence_length must divide num_steps") as caught:
        PPOConfig(num_steps=32, sequence_length=length)
    assert str(length) in str(caught.value)
    assert "32" in str(caught.value)


def test_sequence_length_is_num_steps_or_64_unless_given():
    assert PPOConfig(num_steps=32).bptt_steps == 32
    assert PPOConfig(num_steps=96).bptt_steps == 96
    assert PPOConfig(num_steps=256).bptt_steps == 64
    assert PPOConfig(num_steps=32, sequence_length=8).bptt_steps == 8


def test_minibatches_are_made_of_whole_sequences():
    """4 environments x 8 steps are 4 sequences of 8 steps, or 8 of 4."""
    for num_minibatches in (1, 2, 4):
        PPOConfig(num_envs=4, num_steps=8, num_minibatches=num_minibatches)
    PPOConfig(num_envs=4, num_steps=8, num_minibatches=8, sequence_length=4)
    for num_minibatches, length, sequences in ((8, None, 4), (3, None, 4), (3, 4, 8), (16, 4, 8)):
        with pytest.raises(UserError, match="num_minibatches must divide") as caught:
            PPOConfig(num_envs=4, num_steps=8, num_minibatches=num_minibatches, sequence_length=length)
        for part in (f"num_minibatches={num_minibatches}", f"{sequences} sequences", "num_envs=4"):
            assert part in str(caught.value)


@pytest.mark.parametrize(
    ("options", "minibatches", "length"),
    [
        ({}, 8, 64),
        ({"num_envs": 1}, 4, 32),
        ({"num_envs": 2}, 4, 64),
        ({"num_envs": 3}, 6, 64),
        ({"num_envs": 5}, 5, 32),
        ({"num_envs": 6}, 6, 64),
        ({"num_envs": 2, "num_steps": 256}, 8, 64),
        ({"num_envs": 2, "num_steps": 100}, 2, 100),
        ({"num_envs": 1, "num_steps": 7}, 1, 7),
        ({"num_envs": 1, "sequence_length": 64}, 2, 64),
        ({"num_envs": 3, "num_minibatches": 1}, 1, 64),
    ],
)
def test_minibatches_and_sequences_suit_any_number_of_environments(options, minibatches, length):
    config = PPOConfig(**options)
    assert (config.minibatches, config.bptt_steps) == (minibatches, length)


def test_every_number_of_environments_and_steps_works_by_default():
    for num_envs, num_steps in itertools.product(range(1, 33), (1, 2, 3, 5, 7, 12, 100, 128)):
        config = PPOConfig(num_envs=num_envs, num_steps=num_steps)
        assert num_steps % config.bptt_steps == 0
        assert num_envs * num_steps // config.bptt_steps % config.minibatches == 0


def test_the_limits_themselves_are_allowed():
    PPOConfig(gamma=0.0, gae_lambda=1.0, ent_coef=0.0, vf_coef=0.0, seed=0, units=1, target_kl=None)
    PPOConfig(gamma=1, gae_lambda=0, num_envs=1, num_steps=1, num_minibatches=1, update_epochs=1)


def test_options_of_earlier_versions_have_their_present_names():
    assert make_config(use_sde=True).std == "gsde"
    assert make_config(state_dependent_std=True, use_sde=False).std == "network"
    for options in ({"use_sde": True, "state_dependent_std": True}, {"use_sde": True, "std": "network"}):
        with pytest.raises(UserError, match="exclude each other"):
            make_config(**options)


def test_options_are_of_their_types():
    for name, value in {"anneal_lr": "False", "head_layers": 64, "env_kwargs": 3, "std": "wide", "policy": 1}.items():
        with pytest.raises(UserError, match=rf"^{name} must be .*, got {value!r}"):
            PPOConfig(**{name: value})
    assert type(PPOConfig(log_std_init=np.float32(-1)).log_std_init) is float
    assert PPOConfig(head_layers=[8, 4]).head_layers == (8, 4)


def test_help_says_what_each_option_means():
    shown = inspect.getdoc(PPOConfig)
    for field in dataclasses.fields(PPOConfig):
        assert re.search(rf"^ *{field.name} \(.+\): \w", shown, re.MULTILINE), field.name
    assert "shared_lstm (False)" in shown, "the default of PPO, which differs from the policies'"


def test_without_sources_help_has_no_meanings(monkeypatch):
    """As in a program that PyInstaller made."""

    def missing(_):
        raise OSError("could not get source code")

    monkeypatch.setattr(inspect, "getsource", missing)
    assert describe_options(PPOConfig) == ""
    assert parse(["train", "--units", "7"]).units == 7
