"""Runs sglang.launch_server where torch has no CUDA: `python launch_cpu.py [--parent-pid N]
[--key-on-stdin] <arguments of SGLang>`.

Two packages come from the registry as CUDA builds only and fail at *import* without it. What they
ask for is declared here and given no kernel, so nothing that runs is replaced, and a call that
would need the real thing raises.

* torchvision: its compiled half does not load, after which its Python half registers shape
functions for two operators that
  nobody declared: "operator torchvision::nms does not exist".
* sgl_kernel: SGLang's CPU platform imports functions from it. A CPU build exists from source only.
The functions serve
  speculative decoding and quantisation, both off. Four operators are looked up in torch.ops while
  models are imported.

Processes that SGLang spawns import this file again (as `__mp_main__`) before anything else: they
get the same declarations, and are bound to their parent's life (guard.py).
"""

import importlib.util
import runpy
import sys
import types
from collections.abc import Callable
from typing import Any

import guard

if __name__ == '__mp_main__':
  guard.die_with_parent()

import torch  # takes seconds; a child whose parent dies meanwhile is bound to it already

TORCHVISION_OPS = ('nms', 'qnms')
KERNEL_OPS = (
  'fused_sigmoid_mul_cpu',
  'fused_qk_gemma_rmsnorm_cpu',
  'fused_qk_gemma_rmsnorm_with_gate_cpu',
  'fused_qkvzba_split_reshape_cat_contiguous_cpu',
)


def declare_torchvision() -> None:
  """The schemas of the operators that torchvision's Python half refers to."""
  for op in TORCHVISION_OPS:
    torch.library.define(
      f'torchvision::{op}', '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor'
    )


def declare_kernels() -> None:
  """An `sgl_kernel` whose every function raises when called, and the operators looked up at import.
  A real build wins.
  """
  if importlib.util.find_spec('sgl_kernel') is not None:
    return
  for op in KERNEL_OPS:
    torch.library.define(f'sgl_kernel::{op}', '(Tensor x) -> Tensor')
  module = types.ModuleType(
    'sgl_kernel', 'Stands where a CPU build of sgl_kernel would; nothing in it can be called.'
  )
  module.__getattr__ = _missing
  sys.modules['sgl_kernel'] = module


def _missing(name: str) -> Callable[..., Any]:
  if name.startswith('__'):
    raise AttributeError(name)

  def call(*args: Any, **kwargs: Any) -> Any:
    raise NotImplementedError(
      f'sgl_kernel.{name}: this environment has no CPU build of sgl_kernel; turn off what calls it'
    )

  call.__name__ = name
  return call


declare_torchvision()
declare_kernels()

if __name__ == '__main__':
  parent = guard.take_parent_pid(sys.argv)
  if parent is not None:
    guard.watch_parent(parent)
  guard.take_key(sys.argv, sys.stdin)
  runpy.run_module('sglang.launch_server', run_name='__main__', alter_sys=False)
