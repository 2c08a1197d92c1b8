"""A task as a value: what is asked, how a history item reads, which answers are allowed, how they are scored.

Templates are plain text with `{field}` in braces; a field is a part of a question or of a history item.
"""

import json
import re
import string
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from oppu.errors import ConfigError
from oppu.tasks.plain import plain_words

Kind = Literal["label", "rating", "text"]

_FROZEN = ConfigDict(frozen=True, extra="forbid")


def template_fields(template: str) -> frozenset[str]:
    """The names in braces of a template."""
    return frozenset(name for _, name, _, _ in string.Formatter().parse(template) if name)


def _check_template(template: str) -> str:
    """The template, or a ValueError: braces hold one field's name and nothing else; braces as such are doubled."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"not a template: {error}; write a brace that is no field twice") from None
    for _, name, form, conversion in parts:
        if name is not None and (not name.isidentifier() or form or conversion):
            raise ValueError(f"'{name}' in braces is no field's name; write a brace that is no field twice")
    return template


Template = Annotated[str, AfterValidator(_check_template)]
"""Text with `{field}` in braces."""


class HistoryForm(BaseModel):
    """How a history item becomes a training pair (prompt, answer) and how it reads when it is retrieved."""

    model_config = _FROZEN

    prompt: Template
    """Training prompt; empty: next-token prediction over the answer (section 3 of the paper, tweets)."""
    answer: Template
    """What the module learns to write."""
    shown: Template
    """The item as phi_r shows it, above the question."""
    plain: tuple[str, ...] = Field(default=(), exclude_if=lambda names: not names)
    """Fields that the prompt shows in plain words, made by rule (`plain_words`): a history of finished texts thus asks
    the question that they answer. Not in the paper, which trains on such texts without a prompt."""

    @model_validator(mode="after")
    def _plain_fields_are_asked(self) -> Self:
        if unknown := set(self.plain) - self.asked:
            raise ValueError(f"plain names {', '.join(sorted(unknown))}, which the form's prompt does not show")
        return self

    @property
    def asked(self) -> frozenset[str]:
        """The fields that the prompt shows."""
        return template_fields(self.prompt)

    @property
    def answered(self) -> frozenset[str]:
        """The fields of the answer that the prompt does not show, or in plain words alone."""
        return template_fields(self.answer) - (self.asked - set(self.plain))

    @property
    def fields(self) -> frozenset[str]:
        """The fields that an item must have for this form."""
        return self.asked | template_fields(self.answer) | template_fields(self.shown)

    def asking(self, fields: Mapping[str, str]) -> dict[str, str]:
        """An item's fields as its own prompt may show them: without the answer's, and those of `plain` reworded."""
        plain = {name: plain_words(fields[name]) for name in self.plain}
        return {name: text for name, text in fields.items() if name not in self.answered} | plain


class Hyperparameters(BaseModel):
    """One row of Table 4: the paper's settings for Llama-2-7B."""

    model_config = _FROZEN

    rank: int = 8
    epochs: int = 3
    learning_rate: float = 1e-5
    weight_decay: float = 1e-2
    batch_size: int = 8


class Task(BaseModel):
    """A task: fields, templates, allowed answers and limits. Built-in or from a TOML file, with equal standing."""

    model_config = _FROZEN

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    """The name on the command line and in the store."""
    title: str
    """A few words for people."""
    kind: Kind
    """label: one of `labels`; rating: one of `labels`, which are numbers; text: free text."""
    prompt: Template
    """phi_t: instruction and question (appendix I)."""
    history: tuple[HistoryForm, ...] = Field(min_length=1)
    """How history items read; the first form whose fields an item has is used."""
    search_fields: tuple[str, ...] = Field(min_length=1)
    """Fields by which items are looked up, in a question and in an item alike; missing ones are skipped."""
    labels: tuple[str, ...] = ()
    options: tuple[Template, ...] = Field(default=(), exclude_if=lambda options: not options)
    """What each of the `labels` stands for in a question, such as {option1}, in the labels' order. The label is chosen
    whose text is likeliest after the prompt, by the mean over its tokens; such texts are what a base learns to write.
    Empty: the labels themselves are scored."""
    options_premise: Template = Field(default="", exclude_if=lambda premise: not premise)
    """With `options`: a prompt that lacks the question. What a text's tokens are worth after it is subtracted, so that
    a text which is likely anywhere does not win (domain conditional PMI; Holtzman et al. 2021). Empty: nothing is."""
    lamp_id: str = ""
    """The benchmark's name for the task, written into prediction files; empty: `name`."""
    query_pattern: str = ""
    """Regular expression with named groups that cuts a benchmark question into fields; empty: own data only."""
    profile_prompt: Template = ""
    """Appendix J's prompt for a textual profile, with `{history}`."""
    profile_count: Template = Field(default="", exclude=True)
    """The profile as a count: text with {most_common}, or of a rating {most_common_positive} and
    {most_common_negative}; empty: a model is asked. Not in dumps: what prompts show is in every fingerprint anyway."""
    max_item_words: int = Field(default=768, gt=0)
    """Words of a field of the question or training item; longer ones are cut."""
    max_shown_words: int = Field(default=368, gt=0)
    """Words of a field of a retrieved item."""
    max_answer_tokens: int = Field(default=64, gt=0)
    """Length limit of a generated answer."""
    no_repeat_ngram: int = Field(default=0, ge=0, exclude_if=lambda length: not length)
    """So many tokens in a row are not written twice in an answer, against small models that run in circles; 0: all may
    be, as in the paper."""
    paper: Hyperparameters = Hyperparameters()

    @field_validator("query_pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern, re.DOTALL).groupindex
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if pattern and not groups:
            raise ValueError("needs at least one named group, such as (?P<text>.*)")
        return pattern

    @model_validator(mode="after")
    def _answers_fit_kind(self) -> Self:
        if self.kind == "text" and self.labels:
            raise ValueError("a text task has no labels; use kind = 'label' or drop them")
        if self.kind != "text" and len(self.labels) < 2:
            raise ValueError(f"a {self.kind} task needs at least two labels")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels must differ from each other")
        if self.options and (self.kind != "label" or len(self.options) != len(self.labels)):
            raise ValueError("options are the texts of a label task's labels, one for each label")
        if self.options_premise and (not self.options or template_fields(self.options_premise)):
            raise ValueError("options_premise is a prompt without fields, of a task that has options")
        if self.kind == "rating" and not all(_is_number(label) for label in self.labels):
            raise ValueError("the labels of a rating task must be numbers")
        counted = template_fields(self.profile_count)
        if self.profile_count and (not counted or counted - _countable(self.kind)):
            allowed = ", ".join(sorted(_countable(self.kind))) or "nothing, for there are no labels to count"
            raise ValueError(f"a profile_count of a {self.kind} task names some of: {allowed}")
        if self.prompt and not template_fields(self.prompt):
            raise ValueError("the prompt names no field of the question, such as {input}")
        return self

    @property
    def benchmark_name(self) -> str:
        """The name that prediction files carry."""
        return self.lamp_id or self.name

    @property
    def question_fields(self) -> frozenset[str]:
        """The fields that a question must have."""
        return template_fields(self.prompt).union(*map(template_fields, self.options))

    def form_for(self, fields: Mapping[str, str]) -> HistoryForm | None:
        """The first history form that an item with these fields can fill; None when there is none."""
        return next((form for form in self.history if form.fields <= fields.keys()), None)

    def parse_query(self, text: str) -> dict[str, str] | None:
        """Cut a benchmark question into fields by the task's markers; None when they are not found."""
        match = re.search(self.query_pattern, text, re.DOTALL) if self.query_pattern else None
        return {name: value.strip() for name, value in match.groupdict(default="").items()} if match else None

    def fields_of(self, text: str) -> dict[str, str]:
        """The fields of a question as a person types it: cut by the markers, else all of it is the prompt's one field.

        ConfigError where the prompt has several fields and the markers are not found.
        """
        parsed = self.parse_query(text)
        if parsed is not None:
            return parsed
        names = sorted(self.question_fields)
        if len(names) != 1:
            raise ConfigError(
                f"a question of task {self.name} has the parts {', '.join(names)}, which are not found in the text",
                fix=f"word it so that it matches {self.query_pattern!r}" if self.query_pattern else "",
            )
        return {names[0]: text.strip()}

    def search_text(self, fields: Mapping[str, str]) -> str:
        """What retrieval sees of a question or an item."""
        return " ".join(fields[name] for name in self.search_fields if fields.get(name))


def _countable(kind: Kind) -> frozenset[str]:
    """What a `profile_count` may name; see oppu/profiles/count.py."""
    of_ratings = {"most_common_positive", "most_common_negative"} if kind == "rating" else set()
    return frozenset(of_ratings | ({"most_common"} if kind != "text" else set()))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def task_from_toml(path: Path) -> Task:
    """Read a task from a TOML file; a ConfigError names the file and every key that is wrong."""
    try:
        return Task(**tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"cannot read the task file: {error.strerror}", where=str(path)) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"not valid TOML: {error}", where=str(path)) from None
    except ValidationError as error:
        problems = "; ".join(_problem(detail["loc"], detail["msg"]) for detail in error.errors())
        raise ConfigError(problems, where=str(path), fix="see `oppu tasks show NAME` for an example") from None


def task_to_toml(task: Task) -> str:
    """The task as a TOML file that `task_from_toml` reads as an equal task; what is left out has its default."""
    values = task.model_dump(mode="json", exclude_defaults=True, exclude={"history", "paper"})
    if task.profile_count:
        values["profile_count"] = task.profile_count
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]
    for form in task.history:
        lines += ["", "[[history]]"]
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in form.model_dump().items()]
    lines += ["", "[paper]"] + [f"{key} = {json.dumps(value)}" for key, value in task.paper.model_dump().items()]
    return "\n".join(lines) + "\n"


def _problem(location: tuple[int | str, ...], message: str) -> str:
    key = ".".join(str(part) for part in location) or "task"
    if message == "Extra inputs are not permitted":
        return f"unknown key '{key}'"
    return f"{key}: {message.removeprefix('Value error, ')}"
