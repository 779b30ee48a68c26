"""The distributions against SciPy's, their samples against what they should be, and logits at the edge of float32."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import tensorflow as tf

from rl_lnlstm.distributions import Categorical, DiagonalGaussian

RNG = np.random.default_rng(0)
LEADING = [(), (1,), (5,), (3, 4), (2, 1, 3)]
EXTREME_LOGITS = {
    "far apart": [1e4, -1e4, 0.0, 1.0],
    "all large": [1e4, 1e4 - 1.0, 1e4 + 2.0],
    "all small": [-1e4, -1e4 + 1.0, -1e4 - 3.0],
    "illegal": [0.3, -np.inf, -0.4, -np.inf],
    "one legal": [-np.inf, 0.0, -np.inf],
}


def sample(distribution, seed=0):
    """From a seed, or from a generator that goes on."""
    parameters = distribution[0] if isinstance(distribution, Categorical) else sum(distribution)
    return distribution.sample(distribution.noise(np.random.default_rng(seed), parameters.shape)).numpy()


def most_probable(distribution):
    return distribution.sample(tf.zeros_like(distribution[0])).numpy()


def under(compiled, function):
    return tf.function(function, autograph=False, jit_compile=True) if compiled else function


@pytest.mark.parametrize("leading", LEADING)
def test_categorical_is_scipys(leading):
    logits = RNG.normal(0, 3, (*leading, 6)).astype(np.float32)
    actions = RNG.integers(6, size=leading)
    distribution = Categorical(tf.constant(logits))
    log_p = scipy.special.log_softmax(logits.astype(np.float64), -1)
    expected = np.take_along_axis(log_p, actions[..., None], -1)[..., 0]
    np.testing.assert_allclose(distribution.log_prob(actions), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        distribution.entropy(), scipy.stats.entropy(np.exp(log_p), axis=-1), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(most_probable(distribution), logits.argmax(-1))
    actions_drawn = sample(distribution)
    assert actions_drawn.shape == leading
    assert actions_drawn.dtype == np.int64
    assert distribution.log_prob(actions).shape == distribution.entropy().shape == leading


@pytest.mark.parametrize("leading", LEADING)
def test_gaussian_is_scipys(leading):
    mean = RNG.normal(0, 2, (*leading, 3)).astype(np.float32)
    log_std = np.array([-1.5, 0.0, 0.7], np.float32)
    actions = RNG.normal(0, 2, (*leading, 3)).astype(np.float32)
    distribution = DiagonalGaussian(tf.constant(mean), tf.constant(log_std))
    normal = scipy.stats.norm(mean.astype(np.float64), np.exp(log_std.astype(np.float64)))
    np.testing.assert_allclose(distribution.log_prob(actions), normal.logpdf(actions).sum(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(distribution.entropy(), normal.entropy().sum(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(most_probable(distribution), mean)
    assert sample(distribution).shape == (*leading, 3)
    assert distribution.log_prob(actions).shape == distribution.entropy().shape == leading


def test_gaussian_deviation_may_depend_on_the_state():
    mean, log_std = RNG.normal(size=(2, 4000, 3)).astype(np.float32)
    for given in (mean, mean[0]):  # as long as the deviation, or broadcast to it
        distribution = DiagonalGaussian(tf.constant(given), tf.constant(log_std))
        normal = scipy.stats.norm(np.broadcast_to(given, log_std.shape), np.exp(log_std))
        np.testing.assert_allclose(distribution.entropy(), normal.entropy().sum(-1), rtol=1e-5, atol=1e-5)
        standardised = (sample(distribution) - given) / np.exp(log_std)
        assert scipy.stats.kstest(standardised.ravel(), "norm").pvalue > 1e-3


def test_categorical_samples_with_its_probabilities():
    logits = np.array([[0.0, 1.0, -2.0, 0.5], [3.0, 0.0, 0.0, -1.0]], np.float32)
    count = 20_000
    samples = sample(Categorical(tf.constant(np.broadcast_to(logits, (count, 2, 4)))), 1)
    for column, row in enumerate(logits):
        observed = np.bincount(samples[:, column], minlength=4)
        assert scipy.stats.chisquare(observed, count * scipy.special.softmax(row.astype(np.float64))).pvalue > 1e-3
    # The rows are drawn independently of each other.
    assert scipy.stats.chi2_contingency(np.histogram2d(*samples.T, bins=4)[0]).pvalue > 1e-3


def test_gaussian_samples_with_its_moments_and_components_are_independent():
    mean, log_std = np.array([-3.0, 0.0, 10.0], np.float32), np.array([-2.0, 0.5, 1.0], np.float32)
    distribution = DiagonalGaussian(tf.constant(np.broadcast_to(mean, (20_000, 3))), tf.constant(log_std))
    samples = sample(distribution, 1).astype(np.float64)
    for component in range(3):
        normal = scipy.stats.norm(mean[component], np.exp(log_std[component]))
        assert scipy.stats.kstest(samples[:, component], normal.cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(samples.T) - np.eye(3)).max() < 0.03


@pytest.mark.parametrize(
    "distribution",
    [Categorical(tf.zeros([50, 5])), DiagonalGaussian(tf.zeros([50, 2]), tf.zeros([2]))],
    ids=["categorical", "gaussian"],
)
def test_the_generator_decides_the_samples(distribution):
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    first, second = sample(distribution, one), sample(distribution, one)
    np.testing.assert_array_equal(first, sample(distribution, other))
    np.testing.assert_array_equal(second, sample(distribution, other))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, sample(distribution, 4))


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "XLA"])
@pytest.mark.parametrize("logits", EXTREME_LOGITS.values(), ids=EXTREME_LOGITS)
def test_extreme_logits(logits, compiled):
    """Values as SciPy's in float64, gradients as the formulas': 1[i=a] - p_i and -p_i (log p_i + H)."""
    logits = np.array(logits)
    log_p = scipy.special.log_softmax(logits)
    p = np.exp(log_p)
    entropy = scipy.stats.entropy(p)
    likely = int(log_p.argmax())

    def evaluate(logits):
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(logits)
            distribution = Categorical(logits)
            results = distribution.log_prob(tf.constant(likely, tf.int64)), distribution.entropy()
        return results, [tape.gradient(result, logits) for result in results]

    (log_prob, got_entropy), (d_log_prob, d_entropy) = under(compiled, evaluate)(tf.constant(logits, tf.float32))
    np.testing.assert_allclose(log_prob, log_p[likely], atol=1e-3)  # 1e4 has a spacing of 1e-3 in float32
    np.testing.assert_allclose(got_entropy, entropy, atol=1e-3)
    np.testing.assert_allclose(d_log_prob, np.eye(len(p))[likely] - p, atol=1e-3)
    np.testing.assert_allclose(d_entropy, -p * (np.where(p > 0, log_p, 0) + entropy), atol=1e-3)


@pytest.mark.parametrize("logits", EXTREME_LOGITS.values(), ids=EXTREME_LOGITS)
def test_an_action_without_probability_is_never_sampled(logits):
    p = scipy.special.softmax(np.array(logits))
    distribution = Categorical(tf.constant(np.broadcast_to(logits, (20_000, len(p))), tf.float32))
    frequencies = np.bincount(sample(distribution, 5), minlength=len(p)) / 20_000
    assert (frequencies[p == 0] == 0).all()
    np.testing.assert_allclose(frequencies, p, atol=0.02)
    assert p[most_probable(distribution)[0]] == p.max()
