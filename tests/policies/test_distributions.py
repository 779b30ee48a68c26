"""The distributions against SciPy's and closed forms, their samples against what they should be, and logits at the edge
of float32."""

import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
import tensorflow as tf

from rl_lnlstm.policies.distributions import (
    Bernoulli,
    Categorical,
    Composite,
    DiagonalGaussian,
)
from tests.policies.drawn_distributions import (
    NVEC,
    bernoulli,
    categorical,
    composite,
    gaussian,
    multi_categorical,
    noise_of,
    state_dependent,
)

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


KINDS = [categorical, multi_categorical, bernoulli, gaussian, state_dependent, composite]
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_kind
@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "XLA"])
def test_no_noise_is_the_mode_and_the_mode_is_most_probable(kind, compiled):
    distribution = kind((50,))
    noise = noise_of(distribution, np.random.default_rng(0), (50,))
    mode = under(compiled, distribution.mode)()
    without = under(compiled, distribution.sample)(tf.zeros_like(noise))
    samples = under(compiled, distribution.sample)(noise)
    for one, other, sampled in zip(*map(tf.nest.flatten, (mode, without, samples)), strict=True):
        np.testing.assert_array_equal(one, other)
        assert sampled.dtype == one.dtype
        assert sampled.shape == one.shape
    assert (np.array(distribution.log_prob(mode)) >= np.array(distribution.log_prob(samples))).all()
    assert (np.array(distribution.log_prob(mode)) > np.array(distribution.log_prob(samples))).any()


@each_kind
@pytest.mark.parametrize("leading", LEADING)
def test_shapes(kind, leading):
    one, other = kind(leading, 1), kind(leading, 2)
    for result in (one.log_prob(one.mode()), one.entropy(), one.kl(other)):
        assert result.shape == leading
        assert result.dtype == tf.float32


@each_kind
def test_entropy_and_divergence_are_the_means_that_define_them(kind):
    """-E log p and E (log p - log q), over samples of p, to four standard errors; the divergence from itself is 0."""
    count = 40_000
    one, other = kind((count,), 1, alike=True), kind((count,), 2, alike=True)
    samples = one.sample(noise_of(one, np.random.default_rng(3), (count,)))
    log_p, log_q = one.log_prob(samples).numpy(), other.log_prob(samples).numpy()
    for exact, terms in ((one.entropy()[0], -log_p), (one.kl(other)[0], log_p - log_q)):
        assert abs(float(exact) - terms.mean()) < 4 * terms.std() / np.sqrt(count) + 1e-4
    assert float(one.kl(other)[0]) > 0.01
    np.testing.assert_allclose(one.kl(one)[0], 0, atol=1e-5)


def test_multi_categorical_is_scipys():
    distribution = multi_categorical((7,))
    actions = np.stack([RNG.integers(size, size=7) for size in NVEC], -1)
    log_prob, entropy = 0.0, 0.0
    for component, size in enumerate(NVEC):
        p = scipy.special.softmax(distribution.logits.numpy()[:, component, :size].astype(np.float64), -1)
        log_prob = log_prob + np.log(np.take_along_axis(p, actions[:, component, None], -1)[:, 0])
        entropy = entropy + scipy.stats.entropy(p, axis=-1)
    np.testing.assert_allclose(distribution.log_prob(actions), log_prob, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(distribution.entropy(), entropy, rtol=1e-5, atol=1e-5)


def test_bernoulli_is_scipys():
    distribution = bernoulli((7,))
    p = scipy.special.expit(distribution.logits.numpy().astype(np.float64))
    bits = RNG.integers(2, size=(7, 4)).astype(np.int8)
    scipys = scipy.stats.bernoulli(p)
    np.testing.assert_allclose(distribution.log_prob(bits), scipys.logpmf(bits).sum(-1), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(distribution.entropy(), scipys.entropy().sum(-1), rtol=1e-5, atol=1e-5)
    other = bernoulli((7,), 1)
    q = scipy.special.expit(other.logits.numpy().astype(np.float64))
    expected = (scipy.special.rel_entr(p, q) + scipy.special.rel_entr(1 - p, 1 - q)).sum(-1)
    np.testing.assert_allclose(distribution.kl(other), expected, rtol=1e-4, atol=1e-5)


def test_bernoulli_samples_with_its_probabilities():
    logits = np.array([-3.0, 0.0, 1.0, 40.0], np.float32)
    distribution = Bernoulli(tf.constant(np.broadcast_to(logits, (20_000, 4))))
    ones = distribution.sample(noise_of(distribution, np.random.default_rng(1), (20_000,))).numpy().sum(0)
    for count, p in zip(ones[:3], scipy.special.expit(logits[:3]), strict=True):
        assert scipy.stats.binomtest(int(count), 20_000, p).pvalue > 1e-3
    assert ones[3] == 20_000


@pytest.mark.parametrize("logit", [-1e4, -100.0, 100.0, 1e4])
def test_certain_bits_stay_finite(logit):
    with tf.GradientTape(persistent=True) as tape:
        logits = tf.constant([[logit]])
        tape.watch(logits)
        distribution = Bernoulli(logits)
        results = distribution.log_prob([[int(logit > 0)]]), distribution.entropy(), distribution.kl(Bernoulli(logits))
    for result in results:
        np.testing.assert_allclose(result, [0], atol=1e-6)
        np.testing.assert_allclose(tape.gradient(result, logits), [[0]], atol=1e-6)


def test_divergences_in_closed_form():
    logits = np.array([[0.3, -1.0, 2.0], [0.0, 0.0, 0.0]], np.float32)
    p, q = scipy.special.softmax(logits.astype(np.float64), -1)
    got = Categorical(tf.constant(logits[0])).kl(Categorical(tf.constant(logits[1])))
    np.testing.assert_allclose(got, scipy.stats.entropy(p, q), rtol=1e-5)
    # The integral of p log(p / q), by quadrature.
    one, other = scipy.stats.norm(0.5, np.exp(-0.3)), scipy.stats.norm(-1.0, np.exp(0.4))
    x = np.linspace(-12, 12, 200_001)
    expected = scipy.integrate.trapezoid(one.pdf(x) * (one.logpdf(x) - other.logpdf(x)), x)
    got = DiagonalGaussian(tf.constant([0.5]), tf.constant([-0.3])).kl(
        DiagonalGaussian(tf.constant([-1.0]), tf.constant([0.4]))
    )
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_what_is_illegal_in_both_does_not_diverge_and_what_is_in_one_does():
    logits = tf.constant([0.3, -np.inf, 0.0])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        divergence = Categorical(logits).kl(Categorical(tf.constant([0.0, -np.inf, 0.0])))
    assert 0 < float(divergence) < np.inf
    gradient = tape.gradient(divergence, logits).numpy()
    assert np.isfinite(gradient).all()
    assert gradient[1] == 0
    assert float(Categorical(tf.zeros(3)).kl(Categorical(logits))) == np.inf


def test_state_dependent_noise_has_the_variance_that_it_says():
    """Over matrices: normal, independent, of variance features^2 @ std^2."""
    many = state_dependent((20_000,), alike=True)
    samples = many.sample(noise_of(many, np.random.default_rng(0), (20_000,))).numpy().astype(np.float64)
    mean, log_std, features = (part.numpy().astype(np.float64) for part in many)
    mean, features = mean[0], features[0]
    deviation = np.sqrt((features**2) @ np.exp(log_std) ** 2)
    for component in range(3):
        normal = scipy.stats.norm(mean[component], deviation[component])
        assert scipy.stats.kstest(samples[:, component], normal.cdf).pvalue > 1e-3
    assert np.abs(np.corrcoef(samples.T) - np.eye(3)).max() < 0.03
    normal = scipy.stats.norm(mean, deviation)
    np.testing.assert_allclose(many.log_prob(samples.astype(np.float32)), normal.logpdf(samples).sum(-1), atol=1e-3)
    np.testing.assert_allclose(many.entropy()[0], normal.entropy().sum(), rtol=1e-4)


def test_held_noise_is_a_function_of_the_state():
    """The same matrix and features give the same deviation from the mean, proportional features a proportional one."""
    distribution = state_dependent((1,))
    noise = noise_of(distribution, np.random.default_rng(0), (1,))
    deviation = distribution.sample(noise) - distribution.mean
    np.testing.assert_array_equal(deviation, distribution.sample(noise) - distribution.mean)
    doubled = distribution._replace(features=2 * distribution.features)
    np.testing.assert_allclose(doubled.sample(noise) - doubled.mean, 2 * deviation, rtol=1e-4)
    nothing = distribution._replace(features=0 * distribution.features)
    np.testing.assert_array_equal(nothing.sample(noise), nothing.mean)
    assert np.isfinite(nothing.log_prob(nothing.mode())).all()


def test_parts_are_independent():
    one, other = categorical((7,)), bernoulli((7,))
    both = Composite((one, other), (6, 4))
    actions = one.mode(), other.mode()
    np.testing.assert_allclose(both.log_prob(actions), one.log_prob(actions[0]) + other.log_prob(actions[1]))
    np.testing.assert_allclose(both.entropy(), one.entropy() + other.entropy())
