"""Runs sglang.launch_server on GPUs: `python launch_gpu.py [--parent-pid N] [--key-on-stdin]
<arguments of SGLang>`.

Nothing is declared or replaced here; the file is there so that no process of the server outlives
the run (guard.py).
"""

import runpy
import sys

import guard

if __name__ == '__mp_main__':
  guard.die_with_parent()

if __name__ == '__main__':
  parent = guard.take_parent_pid(sys.argv)
  if parent is not None:
    guard.watch_parent(parent)
  guard.take_key(sys.argv, sys.stdin)
  runpy.run_module('sglang.launch_server', run_name='__main__', alter_sys=False)
