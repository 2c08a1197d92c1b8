"""What an experiment compares: methods of the paper's tables, settings, and the fingerprints of what they decide."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from oppu import __version__
from oppu.describe.writer import ANSWER_TOKENS
from oppu.errors import ConfigError
from oppu.evaluate.columns import TABLE_1
from oppu.examples import PLAIN, Setting
from oppu.model.base import fingerprint_of
from oppu.model.devices import AUTO
from oppu.profiles.timeline import WHOLE, Along
from oppu.records import User, UserProfile
from oppu.tasks import Task
from oppu.train import TrainConfig

ALL = "all"
"""In place of methods: the columns of Table 1, which have their own numbers of retrieved items."""


@dataclass(frozen=True, slots=True)
class Method:
    """A column of Table 1: what the prompt shows, what the base was adapted with, and whether there is a module."""

    setting: Setting
    adapted_with: Setting
    personal: bool


def method(name: str, k: int, seed: int, adapt_k: int | None = None, retriever: str = "bm25") -> Method:
    """A method of the paper's tables by its name; `adapt_k`, `retriever`: see `Experiment`.

    ConfigError for an unknown method or retriever.
    """
    retrieval = Setting(k=k, retriever=retriever, seed=seed)
    profile, both = Setting(profile=True, seed=seed), Setting(k=k, retriever=retriever, profile=True, seed=seed)
    for_retrieval, for_profile, for_both = retrieval, profile, both
    if adapt_k is not None:  # Theta^(R) and Theta^(P), one of each
        for_retrieval = replace(retrieval, k=adapt_k) if k > 0 else retrieval
        for_profile = for_both = replace(both, k=adapt_k)
    methods = {
        "base": Method(PLAIN, PLAIN, False),
        "random": Method(Setting(k=k, retriever="random", seed=seed), for_retrieval, False),
        "rag": Method(retrieval, for_retrieval, False),
        "oppu": Method(PLAIN, PLAIN, True),
        "oppu+rag": Method(retrieval, for_retrieval, True),
        "pag": Method(profile, for_profile, False),
        "pag+rag": Method(both, for_both, False),
        "oppu+pag": Method(profile, for_profile, True),
        "oppu+pag+rag": Method(both, for_both, True),
    }
    if name not in methods:
        fix = f"use some of: {', '.join(methods)}, or {ALL}"
        raise ConfigError(f"unknown method '{name}'", where="--methods", fix=fix)
    return methods[name]


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is compared, on whom, and how everything is trained."""

    task: Task
    methods: tuple[str, ...]
    """Names of methods, or ALL alone."""
    k: tuple[int, ...]
    """Numbers of retrieved items; with ALL those of Table 1."""
    base: str
    adapt: TrainConfig | None
    """None: no task adaption; every method uses the base as it is."""
    personal: TrainConfig
    users: int | None = None
    """The users with the longest histories, so many; None: all."""
    newest: int | None = None
    pairs: int | None = None
    histories: bool = True
    seed: int = 0
    dtype: str = AUTO
    quantize: str | None = None
    """How the base is rounded for modules and answers; the task adaption before that is in full precision."""
    adapt_k: int | None = None
    """Retrieved items in the prompts of the one retrieval base and the one profile base (section 2.2); None: a method's
    base was adapted with the prompts that the method shows, a base for each k, as in the published code."""
    retriever: str = "bm25"
    """Of every method with retrieved items; `random` draws them, and stands on the others' base."""
    own_profiles: Along = WHOLE
    """Where along a history a model writes profiles, in a run that makes its own."""
    profile_tokens: int = ANSWER_TOKENS
    """Length limit of these."""

    @property
    def is_table_1(self) -> bool:
        """Whether the columns of Table 1 are wanted."""
        return self.methods == (ALL,)

    def method_of(self, name: str, k: int) -> Method:
        """One of its methods."""
        return method(name, k, self.seed, self.adapt_k, self.retriever)

    def columns(self) -> list[tuple[str, int]]:
        """(method, k) of each row of the table; methods without retrieval have k = 0."""
        if self.is_table_1:
            return [(column.method, column.k) for column in TABLE_1]
        listed: list[tuple[str, int]] = []
        for name in self.methods:
            for k in self.k:
                column = (name, self.method_of(name, k).setting.k)
                if column not in listed:
                    listed.append(column)
        return listed


def run_fingerprint(
    experiment: Experiment,
    users: Sequence[User],
    base_users: Sequence[User],
) -> str:
    """Over what decides the numbers of every cell; the choice of methods and of k decides which cells there are.

    Of the base it is the content that counts, whatever its name.
    """
    return fingerprint_without(experiment, users, base_users)


def fingerprint_without(
    experiment: Experiment, users: Sequence[User], base_users: Sequence[User], without: Sequence[str] = ()
) -> str:
    """See `run_fingerprint`; `without`: parts of the experiment that do not count."""
    config = asdict(replace(experiment, methods=(), k=(), task=None, base=""))  # type: ignore[arg-type]
    for part in ("adapt_k", "retriever", "own_profiles", "profile_tokens", *without):  # methods and profiles say these
        del config[part]
    if config.get("dtype") == "float32":  # the usual one has no say, so that runs from before it was named stay valid
        config["dtype"] = AUTO
    base = fingerprint_of(experiment.base, experiment.quantize)
    parts = [__version__, base, experiment.task.model_dump_json(), json.dumps(config, sort_keys=True, default=str)]
    digest = hashlib.sha256("\n".join(parts).encode())
    for user in (*users, *base_users):
        digest.update(json.dumps(asdict(user), sort_keys=True).encode())
    return digest.hexdigest()


def cell_fingerprint(
    run: str, method: Method, everyone: Sequence[User], profiles: Mapping[str, UserProfile] | None, way: str
) -> str:
    """Over what decides a cell: what decides all of them, the method, and the profiles where it shows them.

    `way`: how the run makes them itself from the histories, which are in `run`; empty: they are given.
    """
    digest = hashlib.sha256(f"{run}\n{json.dumps(asdict(method), sort_keys=True)}".encode())
    if method.setting.profile and way:
        digest.update(way.encode())
    for user in everyone if method.setting.profile else ():
        profile = (profiles or {}).get(user.id)
        told = profile if profile is None or isinstance(profile, str) else [asdict(each) for each in profile]
        digest.update(json.dumps([user.id, told], sort_keys=True).encode())
    return digest.hexdigest()
