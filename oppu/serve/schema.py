"""Requests and answers as OpenAI has them, and two fields of our own: `task` in a request, `oppu` in an answer.

What cannot be honoured is refused, not ignored: an OpenAI field that this server lacks must have the value that changes
nothing, and a field that OpenAI does not have is an error.
"""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Finish = Literal["stop", "length"]


_CHANGES_NOTHING: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "suffix": ("",),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "store": (False,),
    "service_tier": ("auto", "default"),
    "include_obfuscation": (False,),
}
"""The values, besides null, with which a field of OpenAI's that this server lacks is taken."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid")

    @field_validator("*", mode="before")
    @classmethod
    def _can_be_honoured(cls, value: Any, info: ValidationInfo) -> Any:
        allowed = _CHANGES_NOTHING.get(str(info.field_name))
        if value is not None and allowed is not None and value not in allowed:
            raise ValueError("is not supported by this server; leave it out")
        return value


class StreamOptions(_Model):
    """What a stream carries besides the text."""

    include_usage: bool = False
    include_obfuscation: Any = None


class TextPart(_Model):
    """A part of a message's content."""

    type: Literal["text"]
    text: str


class Message(_Model):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None

    @property
    def text(self) -> str:
        """The content as one string."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class _Request(_Model):
    """What both kinds of request have."""

    model: str
    """The base's name, or `user:<id>`."""
    task: str | None = None
    """Not OpenAI's: put the question into this task's prompt, with retrieved history, as in training."""
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    """None: 0, greedy. # differs from OpenAI, where it is 1: a personal answer shall be the same when asked again"""
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    """For the client's own records; the model name says whose module answers."""
    n: Any = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None

    @model_validator(mode="after")
    def _has_usable_stops(self) -> Self:
        if any(not text for text in self.stops):
            raise ValueError("stop: an empty string cannot end an answer")
        if len(self.stops) > 4:
            raise ValueError("stop: at most 4 strings")
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options: only with stream = true")
        return self

    @property
    def stops(self) -> tuple[str, ...]:
        """The strings that end an answer."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def limit(self) -> int | None:
        """The most tokens to write."""
        return self.max_tokens


class CompletionRequest(_Request):
    """`POST /v1/completions`."""

    prompt: str | Annotated[list[str], Field(min_length=1, max_length=1)]
    best_of: Any = None
    echo: Any = None
    logprobs: Any = None
    suffix: Any = None

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class ChatRequest(_Request):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """OpenAI's newer name of max_tokens; goes before it."""
    logprobs: Any = None
    top_logprobs: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    parallel_tool_calls: Any = None
    response_format: Any = None
    modalities: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens to write."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ModuleInfo(BaseModel):
    """The module that answered."""

    task: str
    setting: str
    version: int


class OppuInfo(BaseModel):
    """Not OpenAI's: who answered, and what of the history the prompt showed."""

    module: ModuleInfo | None
    """None: the plain base, because the request names it or the user has no module on it."""
    retrieved: list[str]
    """Ids of the history items in the prompt, best first."""


class CompletionChoice(BaseModel):
    """The text of a completion, or a piece of it."""

    index: int = 0
    text: str
    logprobs: None = None
    finish_reason: Finish | None


class Completion(BaseModel):
    """A whole completion, or a chunk of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    oppu: OppuInfo | None = None


class ChatMessage(BaseModel):
    """The answer as a turn of the conversation."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """The answer of a chat."""

    index: int = 0
    message: ChatMessage
    logprobs: None = None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    """A whole answer of a chat."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    oppu: OppuInfo | None = None


class ChatChunkChoice(BaseModel):
    """A piece of an answer: `delta` has the role first, then content, then nothing."""

    index: int = 0
    delta: dict[str, str]
    logprobs: None = None
    finish_reason: Finish | None = None


class ChatChunk(BaseModel):
    """One event of a chat's stream."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    oppu: OppuInfo | None = None


class ModelCard(BaseModel):
    """A name that requests may use."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "oppu"


class ModelList(BaseModel):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]
