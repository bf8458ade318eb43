"""Renders a conversation as a prompt, by the template that a model's folder has for it.

A template is a program from the model's folder. It runs in Jinja's sandbox, with the names that
`transformers` gives it, so that both make the same prompt.
"""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from orchestrator.errors import first_line
from orchestrator.processors.text import TextProcessor

PRIVATE = range(0xF0000, 0xFFFFE)  # characters that Unicode leaves to private use


class ChatTemplate:
    """Encodes conversations for one model."""

    def __init__(self, processor: TextProcessor) -> None:
        assert processor.chat_template is not None
        self._source = processor.chat_template
        self._processor = processor
        # In this copy the names of special tokens are special: the template writes them.
        self._tokenizer = Tokenizer.from_str(processor.tokenizer.to_str())
        added = processor.tokenizer.get_added_tokens_decoder()
        self._special = {token.content: i for i, token in added.items() if token.special}

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """The tokens of a conversation and of the beginning of the next answer.

        The names of special tokens in the messages are plain text.

        Raises:
            ValueError: if the template refuses the messages, or fails.
        """
        said = "".join(text for message in messages for text in message.values())
        names = [name for name in self._special if name in said]
        if not names:
            tokens: list[int] = self._tokenizer.encode(
                self.render(messages), add_special_tokens=False
            ).ids
            return tokens
        # Where messages hold such names, other characters stand for them in the template.
        unused = (chr(code) for code in PRIVATE if chr(code) not in said)
        by_name = dict(zip(sorted(names, key=len, reverse=True), unused, strict=False))
        hidden = [
            {key: _replaced(text, by_name) for key, text in message.items()} for message in messages
        ]
        return self._encode_parts(self.render(hidden), {by_name[name]: name for name in by_name})

    def render(self, messages: Sequence[dict[str, str]]) -> str:
        """The text of a conversation and of the beginning of the next answer. Raises ValueError."""
        try:
            return self._template.render(
                messages=messages,
                add_generation_prompt=True,
                tools=None,
                documents=None,
                **self._processor.special_names,
            )
        except _RefusalError as error:
            raise ValueError(f"the model's chat template: {error.message}") from None
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"the model's chat template fails: {first_line(error)}") from None

    @cached_property
    def _template(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        return environment.from_string(self._source)

    def _encode_parts(self, text: str, hidden: dict[str, str]) -> list[int]:
        """The tokens of a text in which the characters of `hidden` stand for names."""
        names = sorted(self._special, key=len, reverse=True)
        tokens: list[int] = []
        for part in re.split(f"({'|'.join(map(re.escape, names))})", text):
            if part in self._special:
                tokens.append(self._special[part])
            elif part:
                tokens += self._processor.encode_plain_batch([_replaced(part, hidden)])[0]
        return tokens


class _RefusalError(TemplateError):
    """The template called `raise_exception`."""


class _Generation(Extension):
    """`{% generation %}`, which marks an assistant's words for training: it changes no text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refuse(message: str) -> NoReturn:
    raise _RefusalError(message)


def _to_json(value: Any, **settings: Any) -> str:
    """`tojson` as `transformers` has it: Jinja's own escapes what HTML could read as markup."""
    return json.dumps(value, **{"ensure_ascii": False, **settings})


def _replaced(text: str, by: dict[str, str]) -> str:
    for old, new in by.items():
        text = text.replace(old, new)
    return text
