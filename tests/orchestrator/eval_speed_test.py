"""How fast an evaluation goes: what its servers say of their load."""

from paravt_jax.orchestrator import eval_speed


def test_what_a_server_says_of_its_load_becomes_a_mean_batch():
  load = eval_speed.Load()
  reply = lambda tokens, calls: {
    'running': [2, 1],
    'waiting': 3,
    'options': {'decode_steps': 4},
    'counts': {'sampled_tokens': tokens, 'decode_calls': calls},
  }
  load.add_poll('u', reply(100, 10))
  load.add_poll('u', reply(340, 20))  # 240 tokens in 10 dispatches of 4 steps
  load.add_poll('sglang', {'version': '0.5.21'})
  assert (load.polls, load.running, load.waiting, load.batch) == (2, 6, 6, 6.0)
  assert eval_speed.Load().batch is None
