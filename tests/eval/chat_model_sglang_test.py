"""The same contexts over both doors of one real SGLang: its native one, by ids, and its
OpenAI-compatible one, by messages.
"""

import asyncio
import dataclasses
import json
import os

import numpy as np
import pytest

from paravt_jax.chat import template
from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.eval.chat_model import ChatModel, ChatOptions
from paravt_jax.models.qwen3_vl import weights
from paravt_jax.rollout.chat_server import Server, ServerOptions
from paravt_jax.rollout.client import Client
from paravt_jax.rollout.router import Router
from paravt_jax.rollout.sampler import MAIN, Address, Sampler
from paravt_jax.serving import sglang
from paravt_jax.testing import tiny
from paravt_jax.types import Segment, TokenClass
from tests import patience
from tests.eval.chat_model_test import SERVER
from tests.rollout.stack import CLIENT, CONTEXT
from tests.serving.contract.drive import sglang_options

pytestmark = pytest.mark.sglang
TOKENS = 24


def contexts(tok):
  """A first turn with frames and a pinned prefix; one without; a second turn after frames that came
  back.
  """
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (3, 64, 96, 3), np.uint8)
  pieces = [
    *template.frame_pieces(frames, (1, 2, 3)),
    'What appears at 2?\nAnswer with the letter.',
  ]
  pinned, plain = (
    template.opening(tok, system, pieces, prefix)
    for system, prefix in (('Look.', '<think>\n'), (None, ''))
  )
  turn = Segment(
    np.append(tok.encode('It is there.</think>', trusted=True), np.int32(tok.im_end)), sampled=True
  )
  more = template.continuation(
    tok,
    closed=True,
    results=['41 red', [*template.frame_pieces(frames[:2], (7, 8)), 'Two frames.']],
    request='Now answer.',
    think_prefix='<think>\n',
  )
  return [[pinned], [plain], [pinned, turn, more]]


def model_folder(tmp_path):
  """A random model that never writes padding rows, which have no text. Returns its vocabulary's
  size.
  """
  tiny.build_model_folder(tmp_path / 'random', 0)
  config, params = weights.load_hf(tmp_path / 'random')
  params['text']['embed']['embedding'] = np.array(params['text']['embed']['embedding'])
  params['text']['embed']['embedding'][ChatTokenizer.load(tmp_path / 'random').vocab_size :] = 0
  weights.save_hf(tmp_path / 'model', config, params, tmp_path / 'random')
  return config.text.vocab


def test_messages_reach_the_model_as_the_very_context_that_ids_do(tmp_path):
  vocab = model_folder(tmp_path)
  tok = ChatTokenizer.load(tmp_path / 'model')
  greedy = dataclasses.replace(CONTEXT, temperature=0.0, context=2048)
  options = sglang_options(tmp_path / 'model', api_key='key', context_length=2048)
  # a random policy writes what no trained one does: these ids are banned at the native door too,
  # and control tokens stay text
  more = json.dumps(
    {'logit_bias': {str(token): -100 for token in tok.vision_ids}, 'skip_special_tokens': False}
  )

  async def ask(url):
    where = ServerOptions(
      **{
        **SERVER,
        'url': f'{url}/v1',
        'model': options.served_name,
        'api_key': 'key',
        'timeout_s': patience.seconds(120.0),
      }
    )
    client = dataclasses.replace(CLIENT, api_key='key', timeout_s=patience.seconds(120.0))
    async with (
      Client(client, vocab, Router((url,)), image_id=tok.image_pad) as native,
      Server(where, 'model') as server,
    ):
      await server.check()
      doors = (
        Sampler(native, tok, greedy),
        ChatModel(server, tok, greedy, ChatOptions(0, True, more)),
      )
      return [
        [
          await door.sample(
            segments,
            address=Address(0, 'a', 0, 0),
            turn=0,
            call=MAIN,
            max_new_tokens=TOKENS,
            token_class=TokenClass.TEXT,
          )
          for door in doors
        ]
        for segments in contexts(tok)
      ]

  process = sglang.launch(
    options,
    env=dict(os.environ),
    log=tmp_path / 'server.log',
    deadline_s=patience.seconds(900),
    parent_pid=os.getpid(),
  )
  try:
    pairs = asyncio.run(ask(process.url))
  finally:
    process.stop(10.0)
  texts = [[tok.decode(segment.ids) for segment, _ in pair] for pair in pairs]
  assert [native for native, _ in texts] == [chat for _, chat in texts]
  assert [native[1] for native, _ in pairs] == [chat[1] for _, chat in pairs]
  assert len({native for native, _ in texts}) == 3  # the contexts differ, and the model sees that
