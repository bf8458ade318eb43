"""OpenAI's completions as pydantic models."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from orchestrator.serve.choices import FinishReason
from orchestrator.serve.protocol import Usage
from orchestrator.serve.text_request import TextRequest, require_unicode

MAX_TEXTS = 128  # that one request may ask for: prompts times n
MAX_PROMPT = 1_000_000  # characters


def _checked_prompt(prompt: Any) -> Any:
    """A prompt, or several. One message for all forms, where pydantic would have one for each."""
    prompts = prompt if isinstance(prompt, list) and not _are_ids(prompt) else [prompt]
    if not 0 < len(prompts) <= MAX_TEXTS:
        raise ValueError(f"takes 1 to {MAX_TEXTS} prompts, not {len(prompts)}")
    for each in prompts:
        if isinstance(each, str):
            if len(each) > MAX_PROMPT:
                raise ValueError(f"a text has at most {MAX_PROMPT} characters")
            require_unicode("prompt", each)
        elif not (_are_ids(each) and all(0 <= number < 2**31 for number in each)):
            raise ValueError("takes a text, a list of texts, token ids, or a list of lists of ids")
    if len({type(each) for each in prompts}) > 1:
        raise ValueError("takes texts or token ids, not both")
    return prompt


def _are_ids(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(type(each) is int for each in value)


Prompt = Annotated[str | list[str] | list[int] | list[list[int]], BeforeValidator(_checked_prompt)]


class CompletionRequest(TextRequest):
    """`POST /v1/completions`."""

    neutral: ClassVar[dict[str, tuple[Any, ...]]] = {"best_of": (1,), "suffix": ()}
    required: ClassVar[str] = "prompt"

    prompt: Prompt
    max_tokens: int | None = Field(None, ge=0, le=1_000_000)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=20)

    @model_validator(mode="after")
    def _check_completion(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens = 0 generates nothing: it needs echo: true")
        if len(self.prompts) * self.n > MAX_TEXTS:
            raise ValueError(
                f"n = {self.n} for {len(self.prompts)} prompts are more than {MAX_TEXTS} texts"
            )
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts, as texts or as token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        ids = [each for each in self.prompt if isinstance(each, int)]
        return [ids] if ids else [each for each in self.prompt if not isinstance(each, int)]


class Logprobs(BaseModel):
    """A list for each property, with an item for each token. The first of a prompt has none."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: Logprobs | None = None
    finish_reason: FinishReason | None  # null in all chunks of a stream but a choice's last


class CompletionResponse(BaseModel):
    """An answer, or a chunk of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
