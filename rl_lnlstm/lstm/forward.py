"""The forward loop over the steps, and the residuals that it stores for the backward pass.

Everything is time-major. The input projection and its normalisation do not depend on the state, so they are computed
for all steps at once before the loop.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import tensorflow as tf

from rl_lnlstm.lstm.equations import State, Tensor, Weights, advance, enter, gates, input_part, inverse_std, matmul
from rl_lnlstm.lstm.steps import lists, put, reader, rows, same_shape, time_and_batch, time_major


class Carry(NamedTuple):
    """What changes the state between two steps. A part that is None changes nothing."""

    masks: Tensor | None = None  # [time, batch] or [time, batch, 1]: 0 resets the state before the step
    padding: Tensor | None = None  # the same shape, bool: False skips the step, and the state stays unchanged
    dropout: Tensor | None = None  # [batch, units], factors for h in the product with the recurrent kernel


class Residuals(NamedTuple):
    """What the forward pass stores for the backward pass, `[time, batch, ...]`."""

    initial: State  # [batch, U]
    states: State  # [time, batch, U], after each step
    sigmoids: Tensor  # [time, batch, 3U], the gates i, f and o
    g: Tensor  # [time, batch, U]
    r_scale: Tensor  # [time, batch, 1], the 1 / std that scaled h @ recurrent_kernel
    c_scale: Tensor  # [time, batch, 1], the 1 / std that scaled c


def project_inputs(inputs: Tensor, w: Weights) -> tuple[Tensor, Tensor]:
    """LN(x @ kernel) of all steps, `[time, batch, 4U]`, and the 1 / std `[time * batch, 1]` that scaled it."""
    product = matmul(rows(inputs), w.kernel, inputs.dtype)
    scale = inverse_std(product)
    return time_major(product * scale, *time_and_batch(inputs)), scale


def forward(
    x_hat: Tensor, carry: Carry, initial: State, w: Weights, dtype: tf.DType, keep: bool
) -> tuple[Tensor, State, Any]:
    """The forward loop. Returns outputs, the final state and, if `keep`, the `Residuals` (otherwise None)."""
    masks, padding, dropout = carry
    recurrent_kernel = tf.cast(w.recurrent_kernel, dtype)
    units, (time, batch), from_inputs = w.cell_gamma.shape[0], time_and_batch(x_hat), input_part(x_hat, w)
    widths = (units, units, 3 * units, units, 1, 1) if keep else (units,)

    def body(t: Tensor, h: Tensor, c: Tensor, *stored: Tensor) -> tuple[Tensor, ...]:
        at = reader(t)
        before = State(h, c)
        state = enter(before, None if masks is None else at(masks), dropout)
        r = matmul(state.h, recurrent_kernel, dtype)
        r_scale = inverse_std(r)
        sigmoids, g = gates(at(from_inputs), r * r_scale, w)
        state, c_scale = advance(sigmoids, g, state.c, w)
        if padding is not None:
            state = State(*(tf.where(at(padding), new, old) for new, old in zip(state, before, strict=True)))
        state = same_shape(state, initial)
        made = (*state, sigmoids, g, r_scale, c_scale)[: len(stored)]
        return t + 1, *state, *(put(steps, t, v) for steps, v in zip(stored, made, strict=True))

    new, stack = lists(batch, initial.h.dtype)
    start = 0, *initial, *(new(time, width) for width in widths)
    _, h, c, *stored = tf.while_loop(lambda t, *_: t < time, body, start)
    hs, *others = map(stack, stored, widths)
    return hs, State(h, c), Residuals(initial, State(hs, others[0]), *others[1:]) if keep else None
