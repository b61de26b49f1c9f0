"""Low-rank adapters (LoRA, Hu et al. 2022) beside the decoder's frozen products.

A product x W becomes x W + x A B, where A is [in, rank] and B is [rank, out]. B starts at zero, so
a new adapter changes nothing. The adapter is one more part of the parameters:

  adapter: layers: <product>: lora_a [layers, in, rank], lora_b [layers, rank, out]

Without that part, the same parameters are the base model.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

PART = 'adapter'  # the adapter's name among the top-level parts of the parameters
PRODUCTS = ('q', 'k', 'v', 'o', 'gate', 'up', 'down')  # of a decoder layer
AXIS = 'rank'  # the logical axis that A and B share
A, B = 'lora_a', 'lora_b'

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Adapter:
  """The form of an adapter."""

  rank: int  # columns of A and rows of B
  alpha: float  # x A B is multiplied by alpha / rank
  products: tuple[str, ...]  # names of PRODUCTS

  def __post_init__(self):
    unknown = sorted(set(self.products) - set(PRODUCTS))
    if self.rank < 1 or not self.products or unknown:
      raise ValueError(
        f'adapter: got rank {self.rank}, products {self.products}; wanted a rank of at least 1 and '
        f'some of {PRODUCTS}'
      )

  @property
  def scale(self) -> float:
    """Returns alpha / rank."""
    return self.alpha / self.rank


def init_boxes(adapter: Adapter, layers: Params, key: jax.Array) -> Params:
  """Returns a new adapter in Flax's boxes, which carry the logical axes: A random, B zero.

  Args:
    layers: boxed parameters of the stacked decoder layers. Their kernels are [layers, in, out] and
      name the last two axes.
  """
  made = {}
  for number, product in enumerate(adapter.products):
    box = layers[product]['kernel']
    depth, width, features = box.value.shape
    inner, outer = box.names
    a = jax.random.normal(jax.random.fold_in(key, number), (depth, width, adapter.rank))
    made[product] = {
      A: nn.LogicallyPartitioned(a * width**-0.5, (inner, AXIS)),
      B: nn.LogicallyPartitioned(jnp.zeros((depth, adapter.rank, features)), (AXIS, outer)),
    }
  return {'layers': made}


def shapes(adapter: Adapter, layers: Params) -> Params:
  """Returns the adapter's part as jax.ShapeDtypeStruct, in float32.

  Args:
    layers: the stacked decoder layers, arrays or their shapes.
  """

  def pair(product: str) -> Params:
    depth, width, features = layers[product]['kernel'].shape
    a, b = (depth, width, adapter.rank), (depth, adapter.rank, features)
    return {A: jax.ShapeDtypeStruct(a, jnp.float32), B: jax.ShapeDtypeStruct(b, jnp.float32)}

  return {'layers': {product: pair(product) for product in adapter.products}}


def join(adapter: Adapter | None, params: Mapping[str, Any]) -> Params:
  """Returns the decoder's layers with A and B beside each adapted kernel, as `layers.Linear` takes
  them.

  B is scaled by alpha / rank. Without an adapter in the parameters, the layers are the base's.
  """
  layers = params['text']['layers']
  if adapter is None or PART not in params:
    return layers
  joined = dict(layers)
  for product, pair in params[PART]['layers'].items():
    joined[product] = {**layers[product], A: pair[A], B: pair[B] * adapter.scale}
  return joined


def fold(adapter: Adapter, params: Mapping[str, Any]) -> Params:
  """Returns the model with W + A B alpha / rank in place of each adapted kernel, and no adapter.

  Sums are float32, one layer at a time, and rounded to the kernel's dtype.
  """

  def one(arrays):
    kernel, a, b = (array.astype(jnp.float32) for array in arrays)
    # 'highest': by default GPUs and TPUs multiply float32 in fewer bits
    added = jnp.matmul(a, b, precision='highest')
    return (kernel + adapter.scale * added).astype(arrays[0].dtype)

  layers = dict(params['text']['layers'])
  for product, pair in params[PART]['layers'].items():
    arrays = (layers[product]['kernel'], pair[A], pair[B])
    layers[product] = {**layers[product], 'kernel': jax.lax.map(one, arrays)}
  rest = {name: part for name, part in params.items() if name != PART}
  return {**rest, 'text': {**params['text'], 'layers': layers}}


def fold_kernel(adapter: Adapter, kernel: np.ndarray, pair: Mapping[str, Any]) -> np.ndarray:
  """Returns `fold` of one product's stacked kernel on the host, in the kernel's dtype."""
  folded = np.empty_like(kernel)
  for layer, (a, b) in enumerate(zip(pair[A], pair[B], strict=True)):
    added = np.asarray(a, np.float32) @ np.asarray(b, np.float32)
    folded[layer] = kernel[layer].astype(np.float32) + np.float32(adapter.scale) * added
  return folded
