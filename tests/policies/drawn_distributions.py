"""Distributions of every kind, with random parameters."""

import numpy as np
import tensorflow as tf

from rl_lnlstm.policies.distributions import (
    Bernoulli,
    Categorical,
    Composite,
    DiagonalGaussian,
    MultiCategorical,
    StateDependentGaussian,
)

NVEC = (3, 5, 1)


def draw(seed, leading, shape, scale=2.0, alike=False):
    """Parameters `[*leading, *shape]`; `alike`, the same for all leading indices."""
    drawn = np.random.default_rng(seed).normal(0, scale, shape if alike else (*leading, *shape))
    return np.broadcast_to(drawn, (*leading, *shape)).astype(np.float32)


def categorical(leading, seed=0, alike=False):
    return Categorical(tf.constant(draw(seed, leading, (6,), alike=alike)))


def multi_categorical(leading, seed=0, alike=False):
    exists = np.arange(5) < np.array(NVEC)[:, None]
    return MultiCategorical(
        tf.constant(np.where(exists, draw(seed, leading, (3, 5), alike=alike), np.float32(-np.inf)))
    )


def bernoulli(leading, seed=0, alike=False):
    return Bernoulli(tf.constant(draw(seed, leading, (4,), alike=alike)))


def gaussian(leading, seed=0, alike=False):
    mean, log_std = draw(seed, leading, (3,), alike=alike), draw(seed + 10, (), (3,), 0.5)
    return DiagonalGaussian(tf.constant(mean), tf.constant(log_std))


def state_dependent(leading, seed=0, alike=False):
    mean, features = (draw(seed + add, leading, shape, 1.0, alike) for add, shape in ((0, (3,)), (20, (5,))))
    return StateDependentGaussian(
        tf.constant(mean), tf.constant(draw(seed + 10, (), (5, 3), 0.5)), tf.constant(features)
    )


def composite(leading, seed=0, alike=False):
    inner = Composite((state_dependent(leading, seed, alike), bernoulli(leading, seed, alike)), (15, 4))
    outer = categorical(leading, seed, alike), inner, multi_categorical(leading, seed, alike)
    return Composite(outer, (6, 19, 15))


def noise_of(distribution, generator, leading):
    """As the heads draw it: one array, whose last axis has the parts' side by side."""
    if isinstance(distribution, Composite):
        parts = [noise_of(part, generator, leading) for part in distribution.parts]
        assert tuple(part.shape[-1] for part in parts) == distribution.noise_sizes
        return np.concatenate(parts, -1)
    sizes = {MultiCategorical: 15, Bernoulli: 4, DiagonalGaussian: 3, StateDependentGaussian: 15, Categorical: 6}
    return distribution.noise(generator, (*leading, sizes[type(distribution)]))
