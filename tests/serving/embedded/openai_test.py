"""The embedded server behind OpenAI's protocol: the same answers as by ids, and errors that
OpenAI's clients read.
"""

import asyncio
import concurrent.futures
import dataclasses
import json
import os
import urllib.error
import urllib.request

import numpy as np
import pytest

from paravt_jax.chat.tokenizer import ChatTokenizer
from paravt_jax.eval.chat_model import ChatModel, ChatOptions
from paravt_jax.rollout.chat_server import Server, ServerOptions, image_part, text_part
from paravt_jax.rollout.client import Client
from paravt_jax.rollout.router import Router
from paravt_jax.rollout.sampler import MAIN, Address, Sampler
from paravt_jax.serving.embedded import launch
from paravt_jax.types import TokenClass
from tests import patience, xla
from tests.eval.chat_model_sglang_test import contexts, model_folder
from tests.eval.chat_model_test import SERVER
from tests.rollout.stack import CLIENT, CONTEXT
from tests.serving.contract.drive import KEY, embedded_options, frame

PATH = '/v1/chat/completions'
USER = {'role': 'user', 'content': 'Say something.'}
# The random model of these tests writes any token. `model_folder` makes one whose tokens have text.
SIZES = {'lanes': ((1024, 8), (2048, 4)), 'pages': 256, 'max_image_patches': 196}


@pytest.fixture(scope='module')
def served(tmp_path_factory):
  """(url, model folder, tokenizer, vocabulary) of a server that needs a key."""
  place = tmp_path_factory.mktemp('openai')
  vocab = model_folder(place)
  tok = ChatTokenizer.load(place / 'model')
  process = launch.launch(
    embedded_options(place / 'model', eos_token_ids=(tok.im_end, tok.endoftext), **SIZES),
    env={**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': xla.QUICK},
    log=place / 'server.log',
    deadline_s=patience.seconds(300),
    parent_pid=os.getpid(),
  )
  try:
    yield process.url, place / 'model', tok, vocab
    assert process.alive, process.tail()
  finally:
    process.stop(20.0)


def send(served, path, body=None, key=KEY) -> tuple[int, bytes]:
  request = urllib.request.Request(
    served[0] + path,
    None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode(),
    {'Authorization': f'Bearer {key}'},
  )
  opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
  try:
    with opener.open(request, timeout=patience.seconds(120)) as reply:
      return reply.status, reply.read()
  except urllib.error.HTTPError as error:
    return error.code, error.read()


def ask(served, *messages, **more) -> dict:
  body = {'model': 'tiny', 'messages': list(messages) or [USER], 'max_tokens': 12, **more}
  status, reply = send(served, PATH, body)
  assert status == 200, reply
  return json.loads(reply)


def events(raw: bytes) -> list[dict]:
  lines = [line for line in raw.decode().split('\n') if line]
  assert all(line.startswith('data: ') for line in lines) and lines[-1] == 'data: [DONE]'
  return [json.loads(line.removeprefix('data: ')) for line in lines[:-1]]


@pytest.mark.parametrize('temperature', [0.0, 0.7])
def test_messages_reach_the_model_as_the_very_context_that_ids_do(served, temperature):
  """The same seed gives the same texts through both protocols, with images and pinned prefixes."""
  url, _, tok, vocab = served
  context = dataclasses.replace(CONTEXT, temperature=temperature, context=2048)

  async def run():
    where = ServerOptions(**{**SERVER, 'url': f'{url}/v1', 'model': 'tiny', 'api_key': KEY})
    options = dataclasses.replace(CLIENT, api_key=KEY)
    async with (
      Client(options, vocab, Router((url,)), image_id=tok.image_pad) as native,
      Server(where, 'model') as server,
    ):
      await server.check()
      doors = (
        Sampler(native, tok, context),
        ChatModel(server, tok, context, ChatOptions.published()),
      )
      how = {'turn': 0, 'call': MAIN, 'max_new_tokens': 24, 'token_class': TokenClass.TEXT}
      return [
        [await door.sample(one, address=Address(0, 'a', 0, 0), **how) for door in doors]
        for one in contexts(tok)
      ]

  pairs = asyncio.run(run())
  assert pairs
  for (direct, finish), (chat, chat_finish) in pairs:
    assert finish == chat_finish
    assert tok.decode(direct.ids) == tok.decode(chat.ids)


def test_a_reply_has_openais_fields_and_counts_images_expanded(served):
  user = {'role': 'user', 'content': [text_part('a'), image_part(frame(1, 64, 64), 0)]}
  reply = ask(served, user, seed=3)
  [choice] = reply['choices']
  assert reply['object'] == 'chat.completion' and reply['model'] == 'tiny'
  assert choice['message']['role'] == 'assistant' and choice['finish_reason'] == 'length'
  usage = reply['usage']
  assert usage['completion_tokens'] == 12
  assert usage['total_tokens'] == usage['prompt_tokens'] + 12
  text_only = ask(served, {'role': 'user', 'content': 'a'})['usage']['prompt_tokens']
  assert usage['prompt_tokens'] == text_only + 4 + 2  # 2x2 merged tokens, and the ids around them
  again = ask(served, user, seed=3)
  assert again['choices'] == reply['choices']
  assert again['usage']['prompt_tokens_details']['cached_tokens'] > 0


def test_without_max_tokens_the_context_is_the_limit(served):
  reply = ask(served, {'role': 'user', 'content': 'z' * 1950}, max_tokens=None, temperature=0)
  full = reply['usage']['total_tokens'] == 2048
  assert full == (reply['choices'][0]['finish_reason'] == 'length')


def test_a_stream_adds_up_to_the_whole_reply(served):
  whole = ask(served, seed=5, max_tokens=40)
  more = {'stream': True, 'stream_options': {'include_usage': True}}
  body = {'model': 'tiny', 'messages': [USER], 'max_tokens': 40, 'seed': 5, **more}
  status, raw = send(served, PATH, body)
  parts = events(raw)
  assert status == 200 and {part['object'] for part in parts} == {'chat.completion.chunk'}
  deltas = [part['choices'][0]['delta'] for part in parts if part['choices']]
  text = ''.join(delta.get('content', '') for delta in deltas)
  assert text == whole['choices'][0]['message']['content'] and len(parts) > 5
  assert parts[-2]['choices'][0]['finish_reason'] == 'length'
  assert parts[-1]['usage']['completion_tokens'] == 40
  assert len({part['id'] for part in parts}) == 1


def test_a_stop_text_ends_the_reply(served):
  whole = ask(served, seed=5, max_tokens=40)['choices'][0]['message']['content']
  stop = whole[9:12]
  reply = ask(served, seed=5, max_tokens=40, stop=[stop])
  assert reply['choices'][0]['finish_reason'] == 'stop'
  assert reply['choices'][0]['message']['content'] == whole[: whole.index(stop)]
  assert reply['usage']['completion_tokens'] < 40


def test_models_lists_the_one_that_is_served(served):
  status, raw = send(served, '/v1/models')
  [model] = json.loads(raw)['data']
  assert status == 200 and model['id'] == 'tiny' and model['max_model_len'] == 2048
  assert json.loads(send(served, '/v1/models/tiny')[1]) == model


@pytest.mark.parametrize(
  'path, body, key, status, param, code',
  [
    (PATH, {'model': 'x', 'messages': [USER]}, KEY, 404, 'model', 'model_not_found'),
    ('/v1/models/x', None, KEY, 404, 'model', 'model_not_found'),
    ('/v1/nothing', None, KEY, 404, None, None),
    (PATH, {'model': 'tiny', 'messages': [USER]}, 'wrong', 401, None, 'invalid_api_key'),
    (PATH, {'model': 'tiny', 'messages': [USER], 'top_p': 2}, KEY, 400, 'top_p', None),
    (PATH, {'model': 'tiny', 'messages': [USER], 'foo': 2}, KEY, 400, 'foo', None),
    (PATH, {'model': 'tiny', 'messages': [{'role': 'x'}]}, KEY, 400, 'messages', None),
    (PATH, {'model': 'tiny', 'messages': [USER], 'max_tokens': 4096}, KEY, 400, None, None),
    (PATH, b'no json', KEY, 400, None, None),
    (PATH, b'x' * (17 << 20), KEY, 413, None, None),
    (PATH, {'model': 'tiny', 'messages': [{**USER, 'content': 'x ' * 3000}]}, KEY, 400, 'messages', None),
  ],
)  # fmt: skip
def test_errors_have_openais_shape(served, path, body, key, status, param, code):
  got, raw = send(served, path, body, key)
  error = json.loads(raw)['error']
  assert (got, error['param'], error['code']) == (status, param, code)
  assert error['message'] and '\n' not in error['message'] and error['type'].endswith('_error')


def test_an_aborted_request_is_an_error_that_may_be_tried_again(served):
  body = {'model': 'tiny', 'messages': [USER], 'max_tokens': 1500, 'logit_bias': {}}
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    waiting = pool.submit(send, served, PATH, body)
    aborted = 0
    while not aborted and not waiting.done():
      aborted = json.loads(send(served, '/abort_request', {'abort_all': True})[1])['aborted']
    status, raw = waiting.result()
  if aborted:  # else the reply was faster than every attempt
    assert status == 500 and 'aborted' in json.loads(raw)['error']['message']


def test_the_openai_client_reads_all_of_it(served):
  openai = pytest.importorskip('openai')
  client = openai.OpenAI(base_url=f'{served[0]}/v1', api_key=KEY, max_retries=0)
  assert [model.id for model in client.models.list()] == ['tiny']
  image = image_part(np.zeros((50, 70, 3), np.uint8), 0)
  messages = [{'role': 'user', 'content': [text_part('What is it?'), image]}]
  how = {'model': 'tiny', 'messages': messages, 'max_tokens': 20, 'seed': 4}
  whole = client.chat.completions.create(**how)
  chunks = list(client.chat.completions.create(**how, stream=True))
  text = ''.join(one.choices[0].delta.content or '' for one in chunks)
  assert text == whole.choices[0].message.content and whole.usage.completion_tokens == 20
  assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason == 'length'
  follow = [*messages, whole.choices[0].message, USER]
  tool = {'type': 'function', 'function': {'name': 'zoom', 'parameters': {'type': 'object'}}}
  assert client.chat.completions.create(**{**how, 'messages': follow}, tools=[tool]).choices
  with pytest.raises(openai.BadRequestError) as refused:
    client.chat.completions.create(**how, temperature=-1)
  assert refused.value.param == 'temperature'
  with pytest.raises(openai.NotFoundError, match='which is served'):
    client.chat.completions.create(**{**how, 'model': 'other'})
  with pytest.raises(openai.AuthenticationError):
    client.with_options(api_key='wrong').models.list()
