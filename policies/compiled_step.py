"""A step of a policy as one call of compiled code. It computes the same as `graph_step`, but faster."""

from __future__ import annotations

import ctypes
import inspect
import logging
import threading
import weakref
from typing import Any, NamedTuple

import gymnasium as gym
import keras
import numpy as np

from rl_lnlstm.errors import UserError
from rl_lnlstm.lstm import kernel
from rl_lnlstm.lstm.equations import Weights
from rl_lnlstm.lstm.layer import MaskedLNLSTM
from rl_lnlstm.policies.convolution import Conv2D, Pixels, activation_in_kernel, is_simple
from rl_lnlstm.policies.distributions import Categorical
from rl_lnlstm.policies.encoder_check import random_observations
from rl_lnlstm.policies.graph_step import StepFunction, step_once
from rl_lnlstm.policies.heads import CategoricalHead, GaussianHead
from rl_lnlstm.policies.network import Network
from rl_lnlstm.policies.normalization import RunningStatistics

MESSAGE_SIZE = 500
TOLERANCE = 1e-3  # allows for rounding; a compiled step that is wrong differs by much more

log = logging.getLogger(__name__)


class Arrays(ctypes.Structure):
    """The struct `RlLnlstmArrays` of act.cc."""

    _fields_ = (
        ("batch", ctypes.c_int64),
        ("parameters", ctypes.c_int64),
        *(
            (name, ctypes.c_void_p)
            for name in (
                *("observations", "images", "h", "c", "episode_starts", "noise", "action_masks"),
                *("numbered_actions", "actions", "values", "log_probs", "new_h", "new_c"),
            )
        ),
    )


class Encoding(NamedTuple):
    """The layers of an encoder: dense layers, and before them, if observations are images of bytes, convolutions."""

    pixels: Pixels | None
    convolutions: list[keras.layers.Conv2D]
    layers: list[keras.layers.Dense]

    def image(self, shape: tuple[int, ...]) -> list[Any]:
        """The rows, columns and channels of images, from the shape of an observation; empty without convolutions."""
        if not self.convolutions:
            return []
        whole = (1, *shape)
        return list(whole if self.pixels is None else self.pixels.compute_output_shape(whole))[1:]


class CompiledStep:
    """The step of a policy on NumPy arrays.

    It takes observations, h, c, episode starts, noise and, for `Discrete` actions only, action masks. It returns
    actions, values, log-probabilities, h and c. Each call reads the weights from the variables. A lock serialises calls
    from several threads.
    """

    def __init__(self, policy: Any, encoder: Encoding) -> None:
        network, statistics, head = policy.network, policy.observation_statistics, policy.action_head
        self._shape = policy.observation_space.shape or ()
        self._numbered = head.distribution is Categorical
        self._sizes = int(np.prod(self._shape)), policy.state_size, head.noise_size
        self._has_images = bool(encoder.convolutions)
        pixels = encoder.pixels
        weights = [statistics.mean, statistics.variance] if statistics is not None else []
        weights += _kernels_and_biases([*encoder.convolutions, *encoder.layers])
        for layer in network.lstm_layers:
            weights += [getattr(layer, name) for name in Weights._fields]
        weights += _kernels_and_biases([*network.actor_layers, *network.critic_layers, head.projection])
        weights += [] if self._numbered else [head.log_std]
        weights += _kernels_and_biases([network.value_head])
        self._network = int(
            kernel.operations().rl_lnlstm_network(
                [weight.value.handle for weight in weights],
                observation_size=self._sizes[0],
                units=policy.options.units,
                lstm_layers=len(network.lstm_layers),
                normalized=statistics is not None,
                clip=statistics.clip if statistics is not None else 0.0,
                epsilon=statistics.epsilon if statistics is not None else 0.0,
                image=encoder.image(self._shape),
                channels_first=pixels is not None and pixels.channels_first,
                scale=1.0 if pixels is None else pixels.scale,
                strides=[stride for layer in encoder.convolutions for stride in layer.strides],
                convolutions=[activation_in_kernel(layer.activation) for layer in encoder.convolutions],
                encoder=[activation_in_kernel(layer.activation) for layer in encoder.layers],
                heads=[activation_in_kernel(layer.activation) for layer in network.actor_layers],
            )
        )
        library = ctypes.CDLL(str(kernel.path()))
        library.rl_lnlstm_free.argtypes = [ctypes.c_void_p]
        weakref.finalize(self, library.rl_lnlstm_free, self._network)
        self._act = library.rl_lnlstm_act
        self._act.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int64]
        self._lock = threading.Lock()
        self._make_buffers(1)

    def _make_buffers(self, batch: int) -> None:
        """Makes the arrays that are passed to C. They are reused, because finding an array's address is slow."""
        observation, state, noise = self._sizes
        self._batch = batch
        self._inputs = (
            np.empty((batch, observation), np.uint8 if self._has_images else np.float64),
            np.empty((batch, state), np.float32),
            np.empty((batch, state), np.float32),
            np.empty(batch, bool),
            np.empty((batch, noise), np.float32),
            np.empty((batch, noise), bool),
        )
        self._outputs = (
            np.empty(batch, np.int64) if self._numbered else np.empty((batch, noise), np.float32),
            *np.empty((2, batch), np.float32),
            *np.empty((2, batch, state), np.float32),
        )
        actions, *others = (array.ctypes.data for array in self._outputs)
        both = (actions, None) if self._numbered else (None, actions)
        observations, *rest = (array.ctypes.data for array in self._inputs)
        seen = (None, observations) if self._has_images else (observations, None)
        self._arrays = Arrays(batch, noise, *seen, *rest, *both, *others)
        self._mask_address = self._arrays.action_masks
        self._address = ctypes.addressof(self._arrays)

    def __call__(self, observations: Any, *others: Any) -> tuple[np.ndarray, ...]:
        """See the class."""
        observations = np.asarray(observations)
        batch = len(observations)
        if observations.shape[1:] != self._shape:
            expected = ", ".join(map(str, ("batch", *self._shape)))
            raise UserError(f"observations must have shape [{expected}], got {list(observations.shape)}")
        with self._lock:
            if batch != self._batch:
                self._make_buffers(batch)
            self._inputs[0][...] = observations.reshape(self._inputs[0].shape)
            masked = len(others) == len(self._inputs) - 1
            self._arrays.action_masks = self._mask_address if masked else None
            names = ("h", "c", "episode_starts", "noise", "action_masks")
            for name, buffer, array in zip(names, self._inputs[1:], others, strict=False):
                array = np.asarray(array)
                if array.shape != buffer.shape:
                    raise UserError(f"{name} must have shape {list(buffer.shape)}, got {list(array.shape)}")
                buffer[...] = array
            message = ctypes.create_string_buffer(MESSAGE_SIZE)
            if self._act(self._network, self._address, message, MESSAGE_SIZE):
                raise RuntimeError(f"acting failed: {message.value.decode()}")
            return tuple(array.copy() for array in self._outputs)


def compiled_like_graph(policy: Any, base: type) -> StepFunction | None:
    """The compiled step of a policy; None if there is none, or if its results differ from those of the graph.

    Only policies that override no method of `base`, which is `RecurrentPolicy`, are compiled.
    """
    written = overrides_nothing(policy, base) and overrides_nothing(policy.network, Network)
    compiled = compiled_step(policy) if written else None
    if compiled is None or _agree(compiled, policy):
        return compiled
    log.warning("the compiled step differs from the policy's graph, so the graph is used, which is slower")
    return None


def overrides_nothing(instance: Any, base: type) -> bool:
    """Whether neither the instance nor its class overrides a member of `base`, apart from `make_encoder`."""
    own = {name for name, member in vars(base).items() if inspect.isfunction(member)}
    if own & set(vars(instance)):
        return False
    for kind in type(instance).__mro__:
        if kind is base:
            return True
        changed = {name for name in vars(kind) if not name.startswith("__") or name.startswith("__get")}
        if any(hasattr(base, name) for name in changed - {"make_encoder"}):
            return False
    return False


def compiled_step(policy: Any) -> CompiledStep | None:
    """The compiled step of a policy, or None if its network cannot be compiled.

    All of this must hold:

    - The observation space is a `Box`, and everything is float32 on a CPU.
    - The encoder consists of dense layers whose activations the kernel has. Images of bytes may first go through
      `Pixels`, convolutions (see `is_simple`) and `Flatten`.
    - Actor and critic have one LSTM layer each, or share one. It sees only encoded observations.
    - All layers have exactly the known types. A subclass may compute something else.
    """
    space, network, head = policy.observation_space, policy.network, policy.action_head
    if type(space) is not gym.spaces.Box or network.num_layers != 1 or policy.last_action_reward.size:
        return None
    encoder = _encoding(network.encoder, space)
    if encoder is None or type(head) not in (CategoricalHead, GaussianHead) or not head.in_kernel:
        return None
    dense = [*encoder.layers, *network.actor_layers, *network.critic_layers, head.projection, network.value_head]
    statistics = policy.observation_statistics
    compiled = (
        all(map(_is_known, [*encoder.convolutions, *dense]))
        and [one.activation for one in network.actor_layers] == [one.activation for one in network.critic_layers]
        and head.projection.activation is network.value_head.activation is keras.activations.linear
        and all(type(layer) is MaskedLNLSTM and layer.backend != "while_loop" for layer in network.lstm_layers)
        and all(layer.compute_dtype == layer.variable_dtype == "float32" for layer in network.lstm_layers)
        and not any("call" in vars(layer) for layer in (head, *network.lstm_layers))
        and (statistics is None or type(statistics) is RunningStatistics)
        and kernel.available()
    )
    return CompiledStep(policy, encoder) if compiled else None


def _encoding(encoder: keras.Model | None, space: gym.spaces.Box) -> Encoding | None:
    """The layers of an encoder of dense layers, perhaps after convolutions; None for any other encoder."""
    if encoder is None:
        return Encoding(None, [], [])
    if type(encoder) is not keras.Sequential or "call" in vars(encoder):
        return None
    layers, rank = list(encoder.layers), len(space.shape)
    pixels, convolutions = None, []
    if layers and type(layers[0]) is Pixels and "call" not in vars(layers[0]) and layers[0].compute_dtype == "float32":
        pixels = layers.pop(0)
    while layers and type(layers[0]) in (Conv2D, keras.layers.Conv2D):
        convolutions.append(layers.pop(0))
    if convolutions and (space.dtype != np.uint8 or not all(map(is_simple, convolutions))):
        return None
    if layers and type(layers[0]) is keras.layers.Flatten and layers[0].data_format == "channels_last":
        layers, rank = layers[1:], 1
    if rank != 1 or (pixels and not convolutions) or not all(type(layer) is keras.layers.Dense for layer in layers):
        return None
    return Encoding(pixels, convolutions, layers)


def _is_known(layer: keras.layers.Dense | keras.layers.Conv2D) -> bool:
    return (
        type(layer) in (keras.layers.Dense, keras.layers.Conv2D, Conv2D)
        and layer.use_bias
        and activation_in_kernel(layer.activation) is not None
        and layer.compute_dtype == layer.variable_dtype == "float32"
        and not getattr(layer, "lora_enabled", False)
        and getattr(layer, "quantization_mode", None) is None
        and "call" not in vars(layer)
    )


def _kernels_and_biases(layers: list[Any]) -> list[keras.Variable]:
    return [weight for layer in layers for weight in (layer.kernel, layer.bias)]


def _agree(compiled: StepFunction, policy: Any) -> bool:
    rng = np.random.default_rng(0)
    batch = 3
    observations = random_observations(policy.observation_space, batch, rng)
    state = rng.uniform(-1, 1, (2, batch, policy.state_size)).astype(np.float32)
    given = (observations, *state, np.arange(batch) == 1, policy.action_head.noise(rng, batch))
    _, *got = compiled(*given)
    _, *expected = step_once(policy, *given)
    policy._clear_losses()
    return all(
        np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
        for one, other in zip(got, expected, strict=True)
    )
