"""skrl's recurrent PPO, for `peers.py`: the model that its documentation shows, with heads as the others have them."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any

import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from peer_run import Clock, Task, main, make_env
from skrl import logger
from skrl.agents.torch.ppo import PPO_RNN
from skrl.envs.wrappers.torch import wrap_env
from skrl.memories.torch import RandomMemory
from skrl.models.torch import CategoricalMixin, DeterministicMixin, Model
from skrl.trainers.torch import SequentialTrainer
from skrl.utils import set_seed
from torch import nn


def head(units: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(units, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))


class ActorCritic(CategoricalMixin, DeterministicMixin, Model):
    """One LSTM for both heads. It runs once for the policy, and the value that is asked for next uses its output."""

    def __init__(self, env: Any, task: Task) -> None:
        Model.__init__(self, observation_space=env.observation_space, action_space=env.action_space, device="cpu")
        CategoricalMixin.__init__(self, role="policy")
        DeterministicMixin.__init__(self, role="value")
        self._task = task
        self.lstm = nn.LSTM(self.num_observations, task.units, batch_first=True)
        self.actor, self.critic = head(task.units, self.num_actions), head(task.units, 1)

    def get_specification(self) -> dict[str, Any]:
        size = 1, self._task.num_envs, self._task.units
        return {"rnn": {"sequence_length": self._task.sequence_length, "sizes": [size, size]}}

    def act(self, inputs: dict[str, Any], *, role: str = "") -> Any:
        return (CategoricalMixin if role == "policy" else DeterministicMixin).act(self, inputs, role=role)

    def compute(self, inputs: dict[str, Any], role: str = "") -> Any:
        if role == "policy" or self._features is None:
            self._features, self._state = self._unroll(inputs)
        features, state = self._features, self._state
        if role == "policy":
            return self.actor(features), {"rnn": [*state]}
        self._features = None
        return self.critic(features), {"rnn": [*state]}

    def _unroll(self, inputs: dict[str, Any]) -> Any:
        observations, (h, c) = inputs["observations"], inputs["rnn"]
        if not self.training:
            outputs, state = self.lstm(observations[:, None], (h.contiguous(), c.contiguous()))
            return outputs[:, 0], state
        steps = self._task.sequence_length
        sequences = observations.view(-1, steps, self.num_observations)
        # The states before the first step. The sequences are cut where an episode of any of them ended.
        h, c = (state.view(1, -1, steps, self._task.units)[:, :, 0].contiguous() for state in (h, c))
        ended = (inputs["terminated"] | inputs["truncated"]).view(-1, steps)
        cuts = [0, *(ended[:, :-1].any(0).nonzero().flatten() + 1).tolist(), steps]
        outputs = []
        for begin, end in itertools.pairwise(cuts):
            output, (h, c) = self.lstm(sequences[:, begin:end], (h, c))
            outputs.append(output)
            going_on = ~ended[:, end - 1, None]
            h, c = h * going_on, c * going_on
        return torch.cat(outputs, 1).flatten(0, 1), (h, c)


class Agent(PPO_RNN):
    """Reports to the clock after each update."""

    clock: Clock

    def update(self, *, timestep: int, timesteps: int) -> None:
        super().update(timestep=timestep, timesteps=timesteps)
        if not self.clock.iterated():
            raise StopIteration


def run(task: Task) -> dict[str, Any]:
    logger.setLevel("ERROR")
    if task.threads is not None:
        torch.set_num_threads(task.threads)
    set_seed(task.seed)
    env = wrap_env(SyncVectorEnv([make_env] * task.num_envs, autoreset_mode=AutoresetMode.SAME_STEP), verbose=False)
    model = ActorCritic(env, task)
    experiment = {"write_interval": 0, "checkpoint_interval": 0}
    agent = Agent(
        models={"policy": model, "value": model},
        memory=RandomMemory(memory_size=task.num_steps, num_envs=task.num_envs, device="cpu"),
        observation_space=env.observation_space,
        action_space=env.action_space,
        device="cpu",
        cfg={
            "rollouts": task.num_steps,
            "learning_epochs": task.update_epochs,
            "mini_batches": task.num_minibatches,
            "learning_rate": 1e-3,
            "discount_factor": 0.99,
            "value_loss_scale": 0.5,
            "value_clip": 0.0,
            "experiment": experiment,
        },
    )
    agent.clock = Clock(task)
    timesteps = task.iterations * task.num_steps
    settings = {
        "timesteps": timesteps,
        "headless": True,
        "disable_progressbar": True,
        "close_environment_at_exit": False,
    }
    with contextlib.suppress(StopIteration):
        SequentialTrainer(env=env, agents=agent, cfg=settings).train()
    return agent.clock.result()


if __name__ == "__main__":
    main(run)
