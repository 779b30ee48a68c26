"""The operations for images refuse wrong shapes and attributes."""

import pytest
import tensorflow as tf

from rl_lnlstm.lstm import kernel
from tests.policies.test_convolution import needs_kernel

# Shapes that fit together
IMAGES, FILTERS, OUTPUTS = (2, 9, 9, 3), (3, 3, 3, 4), (2, 7, 7, 4)
WRONG = [
    ("convolution", (IMAGES[:3], FILTERS, (4,)), "rank 4|must have shape"),
    ("convolution", (IMAGES, FILTERS[:3], (4,)), "rank 4|must have shape"),
    ("convolution", (IMAGES, (3, 3, 2, 4), (4,)), r"filters must have shape \[3,3,3,4\], got \[3,3,2,4\]"),
    ("convolution", (IMAGES, FILTERS, (5,)), r"bias must have shape \[4\], got \[5\]"),
    (
        "convolution",
        ((2, 2, 9, 3), FILTERS, (4,)),
        "images must not be smaller than the kernel|Negative|negative",
    ),
    ("filter_gradient", (IMAGES, (2, 7, 6, 4)), r"d_outputs must have shape \[2,7,7,4\], got \[2,7,6,4\]"),
    ("filter_gradient", (IMAGES, (3, 7, 7, 4)), r"d_outputs must have shape \[2,7,7,4\], got \[3,7,7,4\]"),
    ("filter_gradient", ((2, 2, 9, 3), (2, 1, 7, 4)), "images must not be smaller than the kernel"),
    (
        "image_gradient",
        (IMAGES, FILTERS, (2, 7, 6, 4)),
        r"d_outputs must have shape \[2,7,7,4\], got \[2,7,6,4\]",
    ),
    (
        "image_gradient",
        (IMAGES, (3, 3, 2, 4), OUTPUTS),
        r"filters must have shape \[3,3,3,4\], got \[3,3,2,4\]",
    ),
    ("image_gradient", (IMAGES[:3], FILTERS, OUTPUTS), "rank 4|must have shape"),
    ("pixels", (IMAGES[:3],), "rank 4|four axes"),
]


@needs_kernel
@pytest.mark.parametrize(("name", "shapes", "message"), WRONG, ids=str)
def test_wrong_shapes_are_refused(name, shapes, message):
    attributes = {
        "convolution": {"strides": [1, 1], "activation": "relu"},
        "filter_gradient": {"strides": [1, 1], "kernel_size": [3, 3]},
        "image_gradient": {"strides": [1, 1]},
        "pixels": {"channels_first": True, "scale": 1.0},
    }[name]
    first, *others = shapes
    inputs = [tf.constant(first) if name == "image_gradient" else tf.ones(first), *map(tf.ones, others)]
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        getattr(kernel.operations(), f"rl_lnlstm_{name}")(*inputs, **attributes)


@needs_kernel
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"strides": [1]}, "strides must have two positive numbers"),
        ({"strides": [0, 1]}, "strides must have two positive numbers|Stride must be > 0"),
        ({"activation": "gelu"}, "no activation gelu"),
        ({"scale": 2.0}, "only bytes can be converted"),
        ({"channels_first": True}, "only bytes can be converted"),
    ],
    ids=str,
)
def test_wrong_attributes_are_refused(changed, message):
    attributes = {"strides": [1, 1], "activation": "relu", **changed}
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        kernel.operations().rl_lnlstm_convolution(tf.ones(IMAGES), tf.ones(FILTERS), tf.ones(4), **attributes)
