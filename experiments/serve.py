"""Serves a model to any OpenAI client until Ctrl-C; see configs/serve.py.

Standard output: the model, the address, and a request to try. Exit status: 0 after Ctrl-C or
SIGTERM, 2 for a wrong input, or if the server ends by itself.
"""

import json
import pathlib
import sys

from experiments import launch
from paravt_jax.options import require
from paravt_jax.orchestrator import parts, serving
from paravt_jax.orchestrator.run_folder import Interrupts
from paravt_jax.orchestrator.serving import ServeRecipe

GRACE_S = 10.0  # that the server gets to end


def main(recipe: ServeRecipe) -> None:
  """Starts the server, says where it is, and waits."""
  folder = parts.named_or_newest_model(recipe.model.folder)
  parts.model_of_scale(folder, recipe.scale, 'configs/serve.py')
  check(recipe)
  say(f'model {folder} (starting its server; log {pathlib.Path(recipe.folder) / "server.log"})')
  server = serving.start(recipe, folder, launch.host())
  try:
    with Interrupts() as interrupts:
      for line in greeting(recipe, server.url):
        say(line)
      serving.wait(server, lambda: interrupts.asked)
  finally:
    server.stop(GRACE_S)
  say('ended')


def check(recipe: ServeRecipe) -> None:
  """Raises ConfigError for knobs that do not fit, before anything is started."""
  serving.server_options(recipe, pathlib.Path(), ())
  open_to_all = recipe.host not in ('127.0.0.1', 'localhost') and not recipe.api_key
  require(
    recipe.api_key,
    f'a key, because host={recipe.host} is open to others',
    not open_to_all,
    'api_key',
  )


def greeting(recipe: ServeRecipe, url: str) -> list[str]:
  """Returns the lines that say where the model is and how to ask it."""
  body = {
    'model': recipe.name,
    'messages': [{'role': 'user', 'content': 'Hello'}],
    'max_tokens': 64,
  }
  key = " -H 'Authorization: Bearer KEY'" if recipe.api_key else ''
  return [
    f'serving {recipe.name!r} at {url}/v1   (Ctrl-C ends it)',
    f"  curl -s {url}/v1/chat/completions{key} -H 'Content-Type: application/json' -d '{json.dumps(body)}'",
    f'  or any OpenAI client: base_url={url}/v1, model={recipe.name}, images as data URLs',
  ]


def say(line: str) -> None:
  """Prints a line at once."""
  print(line, flush=True)


if __name__ == '__main__':
  sys.exit(launch.run(main, ServeRecipe))
