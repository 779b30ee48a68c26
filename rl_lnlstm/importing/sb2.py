"""Imports agents of Stable-Baselines 2 with a layer-normalised LSTM."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import keras
import numpy as np

from rl_lnlstm.config import check_types
from rl_lnlstm.errors import UserError, printable
from rl_lnlstm.files import check_is_free, replacing_folder
from rl_lnlstm.importing.agent import Agent, activation_in, describe_object, read_agent
from rl_lnlstm.importing.agent_spaces import (
    Sources,
    Spaces,
    action_space,
    observation_space,
    spaces_of_environment,
)
from rl_lnlstm.importing.layers import weights_from_baselines
from rl_lnlstm.importing.layout import Dense, Layout, check_size, layout_of
from rl_lnlstm.importing.vecnormalize import Normalization, read_vecnormalize
from rl_lnlstm.policies import CnnLnLstmPolicy, MlpLnLstmPolicy, RecurrentPolicy
from rl_lnlstm.policies.encoders import check_activation
from rl_lnlstm.policies.heads import MultiCategoricalHead
from rl_lnlstm.runs.layout import CONFIG, POLICY

DEFAULT_ACTIVATION = "tanh"


def import_sb2(
    agent: str | os.PathLike,
    run_dir: str | os.PathLike | None = None,
    env_id: str | None = None,
    vecnormalize: str | os.PathLike | None = None,
    *,
    wrappers: Sequence[str] = (),
    env_kwargs: Mapping[str, Any] | None = None,
    observation_space: gym.Space | None = None,
    action_space: gym.Space | None = None,
    activation: str | None = None,
) -> RecurrentPolicy:
    """Imports an agent of Stable-Baselines 2: `MlpLnLstmPolicy`, `CnnLnLstmPolicy`, or `LstmPolicy` with layer_norm.

    The policy gives the outputs of the original, and can be trained on. Nothing in the files is executed; you need not
    trust them.

    Args:
        agent: the zip that `model.save` of Stable-Baselines 2 wrote, or an old pickle without code in it.
        run_dir: a new folder to write a run directory to; None to only return the policy.
        env_id: the environment, whose spaces the policy then has. None: the spaces that the file describes, with
            bounds that are rounded.
        vecnormalize: the file that `VecNormalize.save` wrote.
        wrappers, env_kwargs: wrappers and keyword arguments of the environment, as for `PPO`.
        observation_space, action_space: the spaces, if they are neither those of `env_id` nor those in the file.
        activation: the activation of the dense layers; None: as in the file, or tanh.

    Returns:
        The policy. It has a shared LSTM and `rescale_actions=False`.

    Raises:
        UserError: a file cannot be read, is damaged or not of such an agent; its network or normalisation cannot be
            represented; the sources of the spaces contradict each other; `run_dir` is not free; an argument of the
            environment is neither a number nor text.

    Example:

    >>> policy = rl_lnlstm.import_sb2("agent.zip", env_id="CartPole-v1")
    >>> PPO(policy, "CartPole-v1").learn(100_000)
    """
    path, folder = Path(agent), None if run_dir is None else Path(run_dir)
    check_types({"env_kwargs": dict(env_kwargs or {}), "wrappers": tuple(wrappers)})
    if folder is not None:
        check_is_free(folder, "run directory", "RUN_DIR")
    found = read_agent(path)
    environment = None if env_id is None else spaces_of_environment(env_id, wrappers, env_kwargs or {})
    normalization = Normalization(None, None) if vecnormalize is None else read_vecnormalize(Path(vecnormalize))
    try:
        policy = _policy(found, environment, (observation_space, action_space), normalization, activation)
    except UserError as error:
        raise UserError(f"{path}: {printable(error, 2000)}") from None
    except Exception as error:  # a malicious file can cause any error; blame the file
        raise UserError(f"{path} cannot be imported, {type(error).__name__}: {printable(error)}") from None
    policy.env_id = env_id
    if folder is not None:
        _write(policy, folder, {"env_id": env_id, "env_kwargs": dict(env_kwargs or {}), "wrappers": list(wrappers)})
    return policy


def _policy(
    agent: Agent,
    environment: Spaces | None,
    given: tuple[gym.Space | None, gym.Space | None],
    normalization: Normalization,
    activation: str | None,
) -> RecurrentPolicy:
    layout = layout_of(agent.parameters)
    of_environment = (None, None) if environment is None else environment
    in_file = [describe_object(agent.data.get(name)) for name in ("observation_space", "action_space")]
    observed, acted = (Sources(*sources) for sources in zip(given, of_environment, in_file, strict=True))
    spaces = Spaces(observation_space(observed, layout), action_space(acted, layout))
    _check_normalization(normalization, spaces.observation, bool(layout.convolutions))
    if isinstance(spaces.action, gym.spaces.MultiDiscrete):
        check_size(layout, spaces.action.nvec.size * int(spaces.action.nvec.max()))
    kind = CnnLnLstmPolicy if layout.convolutions else MlpLnLstmPolicy
    policy: RecurrentPolicy = kind(
        *spaces,
        seed=0,
        units=layout.units,
        shared_lstm=True,
        encoder_layers=tuple(layer.kernel.shape[1] for layer in layout.encoder),
        head_layers=_head_widths(layout),
        activation=_activation(agent, activation),
        rescale_actions=False,
        normalize_observations=normalization.observations is not None,
        normalize_rewards=normalization.returns is not None,
    )
    _set_weights(policy, layout)
    for moments, statistics in (
        (normalization.observations, policy.observation_statistics),
        (normalization.returns, policy.return_statistics),
    ):
        if moments is not None and statistics is not None:
            moments.assign_to(statistics)
    return policy


def _activation(agent: Agent, given: str | None) -> str:
    in_file = activation_in(agent.data)
    chosen = given or in_file or DEFAULT_ACTIVATION
    try:
        check_activation(chosen)
    except UserError as error:
        hint = "" if given else "; name the one that computes the same with --activation"
        raise UserError(f"{error}{hint}") from None
    return chosen


def _check_normalization(normalization: Normalization, space: gym.Space, images: bool) -> None:
    if normalization.observations is None:
        return
    if images or not isinstance(space, gym.spaces.Box) or not np.issubdtype(space.dtype, np.floating):
        raise UserError(f"a VecNormalize can be imported for vectors of floats, but the observation space is {space}")
    shape = normalization.observations.mean.shape
    if shape != space.shape:
        raise UserError(f"the VecNormalize has statistics of shape {list(shape)}, but the observation space is {space}")


def _head_widths(layout: Layout) -> tuple[int, ...]:
    """The widths of the layers between LSTM and heads. The narrower branch is padded with units that stay 0."""
    return tuple(
        max(actor.kernel.shape[1], critic.kernel.shape[1])
        for actor, critic in zip(layout.actor, layout.critic, strict=True)
    )


def _set_weights(policy: RecurrentPolicy, layout: Layout) -> None:
    """Sets the weights of a policy that was built for the layout."""
    network, layers = policy.network, [] if policy.encoder is None else policy.encoder.layers
    before = [Dense(layer.kernel, layer.bias) for layer in layout.before]
    lstm = dict(layout.lstm)
    # The policy divides bytes by 255. Stable-Baselines 2 does so only before convolutions.
    scale = [layer.scale for layer in layers if isinstance(layer, keras.layers.Rescaling)]
    if scale and not layout.convolutions:
        if before:
            before[0] = Dense(before[0].kernel / np.float32(scale[0]), before[0].bias)
        else:
            lstm["wx"] = lstm["wx"] / np.float32(scale[0])
    for layer, weights in zip([layer for layer in layers if layer.weights], before, strict=True):
        layer.set_weights(list(weights))
    # The LSTM's last input is the constant of `Network.unroll`, which the original does not have.
    lstm["wx"] = np.pad(lstm["wx"], ((0, 1), (0, 0)))
    network.lstm_layers[0].set_weights(weights_from_baselines(lstm))
    head, columns = policy.action_head, None
    if isinstance(head, MultiCategoricalHead):
        columns = np.flatnonzero(head.exists)  # the other columns are the padding of components with fewer values
    _set_branch([*network.actor_layers, head.projection], [*layout.actor, layout.logits], columns)
    _set_branch([*network.critic_layers, network.value_head], [*layout.critic, layout.value])
    if layout.log_std is not None:
        head.log_std.assign(layout.log_std)


def _set_branch(layers: list[keras.layers.Dense], branch: list[Dense], columns: np.ndarray | None = None) -> None:
    """Sets the weights of a branch, from the LSTM to its head, and leaves 0 what the original does not have.

    This is the observation beside the LSTM's output, which the first layer sees here; units that pad the narrower
    branch; and columns of the head other than `columns`.
    """
    for layer, weights in zip(layers, branch, strict=True):
        kernel, bias = (np.zeros(variable.shape, np.float32) for variable in (layer.kernel, layer.bias))
        rows, width = weights.kernel.shape
        chosen = columns if columns is not None and layer is layers[-1] else np.arange(width)
        kernel[:rows, chosen], bias[chosen] = weights.kernel, weights.bias
        layer.set_weights([kernel, bias])


def _write(policy: RecurrentPolicy, run_dir: Path, environment: dict[str, Any]) -> None:
    """Writes a run directory that holds a policy and its options, all of it or nothing."""
    known = {name: value for name, value in environment.items() if value is not None}
    config = {**known, "policy": type(policy).__name__, **dataclasses.asdict(policy.options)}
    try:
        with replacing_folder(run_dir) as folder:
            policy.save(folder / POLICY)
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"run directory {run_dir} cannot be written: {error}") from error
