"""The precision of all products, stated once.

    float32 operands    multiplied and summed in float32 (`HIGHEST`); by default, a TPU would round
                        them to bfloat16 and an NVIDIA GPU to TF32
    bfloat16 operands   summed in float32; what flows on is rounded to bfloat16 once

Operands are bfloat16 in the backbone and the masked decoder if `model.dtype` says so. Everything
else is float32: pixel decoder (as in the published code), heads, selection, matching, losses, boxes
and resizing. So with `model.dtype='float32'` an accelerator computes in full float32.

Full float32 is slow on accelerators: an NVIDIA GPU multiplies without its matrix units, a TPU
multiplies six times. With `model.pixel_decoder_precision='high'` the pixel decoder, which has most
of these products, uses TF32 on NVIDIA GPUs and three products of bfloat16 on TPUs, except where it
samples and resizes.

Matrix products are written with `einsum` and `matmul`, convolutions with `precision=HIGHEST`. In
the backward pass, JAX keeps the precision of a product but not the dtype of its operands: a float32
result has a float32 gradient, and the products with it are slow. Therefore `matmul` casts in a
backward pass of its own, and convolutions return bfloat16, which XLA sums in float32.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.lax import Precision

HIGHEST = Precision.HIGHEST
PRECISIONS = {'highest': HIGHEST, 'high': Precision.HIGH}


def einsum(equation: str, *operands: Array, precision: Precision = HIGHEST) -> Array:
    """`jnp.einsum`, summed and returned in float32, or in float64 if an operand is float64.

    The gradients of bfloat16 operands would be float32 products; see `matmul` for a way out.
    """
    dtype = jnp.promote_types(jnp.result_type(*operands), jnp.float32)
    return jnp.einsum(equation, *operands, precision=precision, preferred_element_type=dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(rows: Array, kernel: Array, precision: Precision = HIGHEST) -> Array:
    """[N, I] times [I, O], both of one dtype, returned in that dtype.

    All three products of the forward and the backward pass have operands of that dtype.
    """
    return einsum('ni,io->no', rows, kernel, precision=precision).astype(rows.dtype)


def _matmul_forward(rows, kernel, precision):
    return matmul(rows, kernel, precision), (rows, kernel)


def _matmul_backward(precision, operands, gradient):
    rows, kernel = operands
    to_rows = einsum('no,io->ni', gradient, kernel, precision=precision)
    to_kernel = einsum('no,ni->oi', gradient, rows, precision=precision).T
    return to_rows.astype(rows.dtype), to_kernel.astype(kernel.dtype)


matmul.defvjp(_matmul_forward, _matmul_backward)
