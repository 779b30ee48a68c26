"""Refuses encoders that compute something else when acting than in training."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import keras
import numpy as np
import tensorflow as tf

from rl_lnlstm.errors import UserError, one_line
from rl_lnlstm.policies.encoders import as_floats, endless_seeds
from rl_lnlstm.spaces import flatten, is_categorical, map_leaves, unflatten

ROWS = 4
TOLERANCE = 1e-4
WIDE = 1e4  # wider bounds say nothing about the actual observations
HALF_PRECISION = ("float16", "bfloat16")
PYTHON_OPERATIONS = ("PyFunc", "PyFuncStateless", "EagerPyFunc")  # tf.numpy_function and tf.py_function


@contextlib.contextmanager
def keras_defaults() -> Iterator[None]:
    """Inside the block, Keras builds layers in float32 and with channels last; then its settings are restored."""
    policy, dtype, data_format = (
        keras.config.dtype_policy(),
        keras.config.floatx(),
        keras.config.image_data_format(),
    )
    keras.config.set_floatx("float32")
    keras.config.set_dtype_policy("float32")
    keras.config.set_image_data_format("channels_last")
    try:
        yield
    finally:
        keras.config.set_floatx(dtype)
        keras.config.set_dtype_policy(policy)
        keras.config.set_image_data_format(data_format)


def random_observations(space: gym.Space, batch: int, rng: np.random.Generator) -> Any:
    """Random observations `[batch, *shape]`; where bounds are very wide, values of ordinary size."""

    def draw(leaf: gym.Space) -> np.ndarray:
        shape = (batch, *(leaf.shape or ()))
        if is_categorical(leaf):
            sizes = leaf.nvec if isinstance(leaf, gym.spaces.MultiDiscrete) else leaf.n
            return (rng.integers(sizes, size=shape) + leaf.start).astype(leaf.dtype)
        if not isinstance(leaf, gym.spaces.Box):
            return rng.integers(2, size=shape).astype(leaf.dtype)
        low, high = leaf.low.astype(np.float64), leaf.high.astype(np.float64)
        narrow = (low > -WIDE) & (high < WIDE)
        uniform = rng.uniform(np.where(narrow, low, 0), np.where(narrow, high, 1), shape)
        return np.where(narrow, uniform, np.clip(rng.normal(size=shape), low, high)).astype(leaf.dtype)

    return map_leaves(draw, space)


def chosen_encoder(
    policy: Any, base: Any, encoder: keras.Model | None, seed: int | None
) -> tuple[keras.Model | None, Iterator[int]]:
    """Chooses the encoder: the one given to the policy, or the one its class makes. Also seeds for other weights.

    Args:
        policy: the policy.
        base: `RecurrentPolicy`, which makes no encoder itself.
        encoder: the encoder given to the policy, or None.
        seed: the policy's seed.

    Raises:
        UserError: there are both, or the encoder fails `check_encoder`.
    """
    seeds, make = endless_seeds(seed), type(policy).make_encoder
    if encoder is not None and make.__func__ is not base.make_encoder.__func__:
        raise UserError(f"encoder: {type(policy).__name__} makes its own; pass yours to RecurrentPolicy instead")
    layers = policy.options.encoder_layers
    if policy.custom_encoder and layers is not None and policy.critic_observation_space is None:
        raise UserError(f"encoder_layers is {layers}, but your encoder is used as it is: leave the option out")
    of_the_user = encoder is not None or not make.__module__.startswith("rl_lnlstm.policies.")
    if encoder is None:
        encoder = policy.make_encoder(policy.actor_observation_space, policy.options, seeds)
        seeds = endless_seeds(next(seeds)) if encoder is not None else seeds
    # A saved policy is first built in a graph to check its description. Nothing can be run there.
    if encoder is not None and of_the_user and tf.executing_eagerly():
        check_encoder(encoder, policy.actor_observation_space)
    return encoder, seeds


def check_encoder(encoder: Any, space: gym.Space) -> None:
    """Runs an encoder on random observations.

    Raises:
        UserError: the encoder computes in half precision; its output is not `[batch, features]`, or not finite; a call
            changes its variables; its output differs from call to call, between training and inference, or with other
            rows in the batch; or it does not work in a TensorFlow graph, for example because it calls NumPy.
    """
    observations = random_observations(space, ROWS, np.random.default_rng(0))
    inputs = map_leaves(as_floats, space, map_leaves(lambda _, part: tf.convert_to_tensor(part), space, observations))
    first = _run(encoder, inputs)  # builds layers that are not built yet
    _check_precision(encoder)
    if not np.isfinite(first).all():
        raise UserError(f"{_named(encoder)}: its output for observations of the space holds NaN or infinity")
    before = [np.array(keras.ops.convert_to_numpy(variable)) for variable in encoder.variables]
    problem = None
    for what, arguments in {
        "from call to call": {},
        "between training and acting": {"training": True},
        "with training=False": {"training": False},
    }.items():
        if problem is None and not _close(first, _run(encoder, inputs, **arguments)):
            problem = f"its output differs {what}"
    changed = [
        variable
        for variable, old in zip(encoder.variables, before, strict=True)
        if not np.array_equal(keras.ops.convert_to_numpy(variable), old, equal_nan=old.dtype.kind == "f")
    ]
    for variable, old in zip(encoder.variables, before, strict=True):
        variable.assign(old)
    if problem is None and changed:
        problem = f"a call changes its variable {changed[0].path}"
    if problem is not None:
        raise UserError(
            f"{_named(encoder)}: {problem}{_suspects(encoder)}, but a policy must compute the same in acting and "
            "training. Leave such layers out: LayerNormalization can replace BatchNormalization, and a penalty such as "
            "kernel_regularizer can replace Dropout"
        )
    rows = [_run(encoder, map_leaves(lambda _, part, i=i: part[i : i + 1], space, inputs)) for i in range(ROWS)]
    if not _close(first, np.concatenate(rows)):
        raise UserError(
            f"{_named(encoder)}: the features of an observation depend on the other observations in the batch, but a "
            "policy must compute the same in acting and training, whose batches differ"
        )
    _check_in_graph(encoder, inputs, space, first)


def _check_in_graph(encoder: Any, inputs: Any, space: gym.Space, expected: np.ndarray) -> None:
    """Raises `UserError` unless the encoder computes the same in a graph, where acting and training run it."""
    advice = "use keras.ops or TensorFlow in its call, and no NumPy"
    function = tf.function(lambda *parts: encoder(unflatten(space, parts)), autograph=False)
    try:
        concrete = function.get_concrete_function(
            *(tf.TensorSpec([None, *p.shape[1:]], p.dtype) for p in flatten(space, inputs))
        )
        features = concrete(*flatten(space, inputs))
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(error):.300}"
        raise UserError(f"{_named(encoder)}: it cannot run in a TensorFlow graph, {what}; {advice}") from error
    called = [operation.name for operation in concrete.graph.get_operations() if operation.type in PYTHON_OPERATIONS]
    if called:
        raise UserError(
            f"{_named(encoder)}: {called[0]} calls Python, which has no gradient or cannot be compiled; {advice}"
        )
    if not _close(expected, np.array(tf.cast(features, tf.float32))):
        raise UserError(f"{_named(encoder)}: its output in a TensorFlow graph differs; {advice}")


def _run(encoder: Any, inputs: Any, **arguments: Any) -> np.ndarray:
    if not isinstance(encoder, keras.layers.Layer):
        raise UserError(f"encoder must be a Keras model or layer, got {type(encoder).__name__}")
    try:
        features = encoder(inputs, **arguments)
    except Exception as error:
        what = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{_named(encoder)}: a call with observations failed, {what}") from error
    shape = getattr(features, "shape", None)
    if shape is None or len(shape) != 2:
        got = type(features).__name__ if shape is None else list(shape)
        raise UserError(f"{_named(encoder)}: its output must have shape [batch, features], got {got}")
    return np.array(tf.cast(features, tf.float32))


def _named(encoder: Any) -> str:
    return f"encoder {encoder.name} ({type(encoder).__name__})"


def _close(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)


def _check_precision(encoder: Any) -> None:
    for layer in encoder._flatten_layers():
        if layer.compute_dtype in HALF_PRECISION:
            raise UserError(
                f"{_named(encoder)}: layer {layer.name} computes in {layer.compute_dtype}, but half precision makes "
                "acting and training differ by rounding, and PPO does not scale losses; build it with dtype='float32'"
            )


def _suspects(encoder: Any) -> str:
    """Names the layers that behave differently in training, for an error message."""
    names = [
        f"{layer.name} ({type(layer).__name__})"
        for layer in encoder._flatten_layers()
        if not layer._layers and (layer._call_has_training_arg or layer._seed_generators)
    ]
    return f" (look at {', '.join(names[:5])})" if names else ""
