"""What a page may do: run its own script, and load nothing.

Pages show what models, annotations and files contain. All of it is escaped. The policy is a second
wall: a browser that reads it runs no other script and asks no server for anything, whatever stands in
the page.
"""

import base64
import hashlib

from markupsafe import Markup

# Styles are inline, also in attributes, and cannot load anything under default-src. Pictures stand in
# the page as data.
_RULES = (
  "default-src 'none'",
  "style-src 'unsafe-inline'",
  'img-src data:',
  "base-uri 'none'",
  "form-action 'none'",
)


def meta(script: str) -> Markup:
  """Returns the element that belongs into a page's head, before anything else that matters.

  script: the exact text between `<script>` and `</script>`, the only one of the page. Browsers
    compare its hash.
  """
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  rules = '; '.join((*_RULES, f"script-src 'sha256-{digest}'"))
  return Markup('<meta http-equiv="Content-Security-Policy" content="{}">').format(rules)
