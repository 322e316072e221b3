"""The chat template of an exported folder: the same prompts as `prompts.ChatTemplate`, in Jinja.

Contents are strings or lists of parts. Clips stand where their parts stand, or where the text says
`<AudioHere>`, if it does so as often as there are clips; all of it as in `naturelm serve`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from NatureLM.prompts import AUDIO_TAG, PLACEHOLDER, ChatTemplate

_SOURCE = """\
{%- macro said(content) -%}
  {%- if content is string -%}
    {%- if PLACE in content -%}
      {{- raise_exception(PLACE ~ ' stands for sound, and the message brings none') -}}
    {%- endif -%}
    {{- content.strip() -}}
  {%- elif content is not none -%}
    {%- set ns = namespace(named=0, clips=0, pieces=[], texts=[]) -%}
    {%- for part in content -%}
      {%- if part['type'] in ['audio', 'input_audio', 'audio_url'] -%}
        {%- set ns.clips = ns.clips + 1 -%}
        {%- set ns.pieces = ns.pieces + [TAG] -%}
      {%- elif part['type'] in ['text', 'input_text', 'output_text'] -%}
        {%- set ns.named = ns.named + part['text'].count(PLACE) -%}
        {%- set ns.texts = ns.texts + [part['text']] -%}
        {%- if part['text'].strip() -%}
          {%- set ns.pieces = ns.pieces + [part['text'].strip()] -%}
        {%- endif -%}
      {%- else -%}
        {{- raise_exception('a part of type ' ~ part['type'] ~ ' is not understood') -}}
      {%- endif -%}
    {%- endfor -%}
    {%- if not ns.named -%}
      {{- ns.pieces | join(' ') -}}
    {%- elif ns.named == ns.clips -%}
      {{- (ns.texts | join(NEWLINE)).strip() -}}
    {%- else -%}
      {{- raise_exception('the text has ' ~ ns.named ~ ' places for clips, and there are '
                          ~ ns.clips ~ ' clips') -}}
    {%- endif -%}
  {%- endif -%}
{%- endmacro -%}
{%- set ns = namespace(system='', question='', open=false, turns=0, out=bos_token or '') -%}
{%- for message in messages -%}
  {%- set text = said(message['content']) -%}
  {%- if message['role'] in ['system', 'developer'] -%}
    {%- if ns.turns or ns.open -%}{{ raise_exception('a system message comes first') }}{%- endif -%}
    {%- set ns.system = ns.system ~ (BLANK if ns.system else '') ~ text -%}
  {%- elif message['role'] == 'user' -%}
    {%- set ns.question = (ns.question ~ NEWLINE ~ text).strip() if ns.open else text -%}
    {%- set ns.open = true -%}
  {%- elif message['role'] == 'assistant' and ns.open and text -%}
    {%- set ns.out = ns.out ~ OPENED ~ ns.question ~ ANSWER ~ text.replace(PLACE, '') -%}
    {%- set ns.turns = ns.turns + 1 -%}
    {%- set ns.open = false -%}
  {%- else -%}
    {{- raise_exception('an answer stands after a question') -}}
  {%- endif -%}
{%- endfor -%}
{%- if not ns.open -%}
  {{- raise_exception('the messages must end with one of the user') -}}
{%- endif -%}
{{- ns.out ~ OPENED ~ ns.question ~ ANSWER -}}
"""


def jinja_template(template: str) -> str:
    """The chat template of a model with this prompt template (`{}` stands for the question)."""
    chat = ChatTemplate.of(template)
    return _with_names(
        _SOURCE,
        {
            "OPENED": _opened(chat),
            "ANSWER": json.dumps(chat.answer),
            "TAG": json.dumps(AUDIO_TAG),
            "PLACE": json.dumps(PLACEHOLDER),
            "NEWLINE": json.dumps("\n"),
            "BLANK": json.dumps("\n\n"),
        },
    )


def _opened(chat: ChatTemplate) -> str:
    """What stands in front of a question: after an earlier answer, after the system message."""
    later, first = json.dumps(chat.end + chat.question), json.dumps(chat.start)
    if chat.start == chat.question and "user" in chat.question:
        system = json.dumps(chat.question.replace("user", "system", 1))
        before = f"({system} ~ ns.system ~ {json.dumps(chat.end + chat.start)})"
    else:
        before = f"({first} ~ ns.system ~ {json.dumps(chr(10) * 2)})"
    return f"({later} if ns.turns else {before} if ns.system else {first})"


def _with_names(source: str, values: Mapping[str, str]) -> str:
    """The source with values for names, which may hold such words themselves."""
    return re.sub(rf"\b({'|'.join(values)})\b", lambda found: values[found[1]], source)
