"""Text to tokens and back: the template, the tool-call parser, the prompts."""

from typing import TYPE_CHECKING

from paravt_jax import lazy

__all__ = ['ChatTokenizer', 'has_answer', 'parse', 'resolve_window']

if TYPE_CHECKING:
  from paravt_jax.chat.tags import has_answer
  from paravt_jax.chat.tokenizer import ChatTokenizer
  from paravt_jax.chat.toolcalls import parse, resolve_window
else:
  __getattr__, __dir__ = lazy.names(
    __name__,
    tags=('has_answer',),
    tokenizer=('ChatTokenizer',),
    toolcalls=('parse', 'resolve_window'),
  )
