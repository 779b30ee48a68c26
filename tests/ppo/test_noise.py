"""Each environment samples its actions from a generator of its own, so other environments do not change its rollout."""

import copy

import numpy as np
import pytest
import tensorflow as tf
from gymnasium import spaces

from rl_lnlstm.config import PolicyOptions
from rl_lnlstm.envs import make_vec
from rl_lnlstm.errors import UserError
from rl_lnlstm.policies import MlpLnLstmPolicy
from rl_lnlstm.policies.heads import action_head
from rl_lnlstm.ppo.collect import RolloutRunner
from rl_lnlstm.ppo.noise import RolloutNoise, acting_generators
from tests.any_space import AnyEnv

OBSERVATIONS = spaces.Box(-1, 1, (3,), np.float32)
BOX, DISCRETE = spaces.Box(-1, 1, (2,), np.float32), spaces.Discrete(3)
KINDS = {
    "discrete": (DISCRETE, {}),
    "continuous": (BOX, {"shared_lstm": False}),
    "gsde": (BOX, {"std": "gsde"}),
    "gsde in part": (spaces.Tuple([DISCRETE, BOX]), {"std": "gsde"}),
}
STEPS = 12


def runner(policy, environments):
    envs = make_vec(lambda: AnyEnv(copy.deepcopy(OBSERVATIONS), policy.action_space), len(environments))
    freq = 5 if policy.options.std == "gsde" else None
    seeds = [int(number) for number in environments]
    return RolloutRunner(policy, envs, STEPS, 6, seeds, freq, acting_generators(3, environments))


@pytest.mark.parametrize("kind", KINDS)
def test_environments_apart_give_the_rollouts_that_they_give_together(kind):
    space, options = KINDS[kind]
    policy = MlpLnLstmPolicy(OBSERVATIONS, space, units=4, seed=1, head_layers=(4,), encoder_layers=(), **options)
    together, parts = runner(policy, range(5)), [runner(policy, range(2)), runner(policy, range(2, 5))]
    before = policy.generator.bit_generator.state
    for _ in range(2):
        whole, pieces = together.run(), [part.run() for part in parts]
        for name in ("observations", "actions", "log_probs", "values", "next_values", "sequence_states"):
            joined = tf.nest.map_structure(
                lambda *columns: np.concatenate(columns, 1), *(getattr(piece, name) for piece in pieces)
            )
            # Graphs may round differently for another number of rows.
            tf.nest.map_structure(
                lambda one, other: np.testing.assert_allclose(one, other, atol=2e-6), getattr(whole, name), joined
            )
    assert policy.generator.bit_generator.state == before
    states = [state for part in parts for state in part.get_state()["generators"]]
    assert states == together.get_state()["generators"]


@pytest.mark.parametrize("kind", KINDS)
def test_noise_differs_everywhere_but_in_what_gsde_holds(kind):
    space, options = KINDS[kind]
    head = action_head(space, PolicyOptions(**options), seed=0)
    head(tf.zeros([1, 4]))
    noise = RolloutNoise(head, acting_generators(0, range(3)), STEPS, 5)
    rows = []
    for _ in range(2):
        noise.draw()
        rows += [noise.at(t) for t in range(STEPS)]
    held = np.array(rows)[..., head.held()]
    drawn = [0, 5, 10, 12, 17, 22]  # a new rollout draws again
    for first, last in zip(drawn, [*drawn[1:], 2 * STEPS], strict=True):
        assert (held[first:last] == held[first]).all()
    for values in (held[drawn], np.array(rows)[..., ~head.held()]):
        assert len(np.unique(values)) == values.size
    assert np.array(rows).shape == (2 * STEPS, 3, head.noise_size)
    assert rows[0].dtype == np.float32


def test_noise_of_another_shape_is_refused():
    policy = MlpLnLstmPolicy(OBSERVATIONS, DISCRETE, units=4, head_layers=(), encoder_layers=())
    with pytest.raises(UserError, match=r"noise must have shape \[2, 3\], got \[2, 2\]"):
        policy.step(np.zeros((2, 3), np.float32), None, np.ones(2, bool), noise=np.zeros((2, 2), np.float32))
