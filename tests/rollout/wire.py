"""A request, its reply, and a client with small limits: what tests of clients and fleets share."""

import asyncio
import dataclasses

from paravt_jax.rollout.client import Client
from paravt_jax.rollout.http import ClientOptions
from paravt_jax.rollout.router import Router
from paravt_jax.serving.protocol import GenerateRequest
from tests import patience

OPTIONS = ClientOptions(
  api_key=None,
  connections=64,
  timeout_s=patience.seconds(60.0),
  ready_timeout_s=2.0,
  retries=2,
  backoff_s=0.01,
  image_cache=256,
  image_folder='',
)


PAD = 98


REQUEST = GenerateRequest(
  rid='a',
  input_ids=[1, 2, 3],
  images=(),
  temperature=0.7,
  top_p=1.0,
  top_k=-1,
  max_new_tokens=2048,
  stop_token_ids=(2,),
  banned_ids=(90, 91),
  seed=5,
  ignore_eos=False,
)


WHOLE = {
  'text': '',
  'output_ids': [5, 2],
  'meta_info': {
    'id': 'a',
    'finish_reason': {'type': 'stop'},
    'prompt_tokens': 3,
    'output_token_logprobs': [[-0.5, 5, None], [-0.5, 2, None]],
  },
}


def opened(router, **options):
  return Client(dataclasses.replace(OPTIONS, **options), 100, router, image_id=PAD)


def generate(server, request=REQUEST, **options):
  async def run():
    async with opened(Router((server.url,)), **options) as client:
      return await client.generate(request), dict(client.counts)

  return asyncio.run(run())
