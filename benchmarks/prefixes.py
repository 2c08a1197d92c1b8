"""How much of their questions' prompts do different users share? What a trunk for all of them could save in answering.

Within a user, shared beginnings are computed once as it is. With modules on the top N layers alone, what the layers
below make of a beginning that several users share could be computed once for all of them: for the users who are
answered together, or, since passes are computed one by one, for those in one pass. A server, which answers one question
of a user at a time, could keep the beginning that all users' prompts share. Counted are tokens, labels included but for
the last; nothing is run through a model.

    python benchmarks/prefixes.py --data DATA
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from oppu.answering import USERS_TOGETHER
from oppu.data import read_dataset
from oppu.examples import Setting, query_examples
from oppu.model.base import load_base
from oppu.model.forward import SlotRow, passes, rows_of
from oppu.model.packing import pack
from oppu.model.tokens import Encoded, answer_text, encode, encode_answers
from oppu.records import User
from oppu.tasks import BUILT_IN, Task


def asked(tokenizer: PreTrainedTokenizerBase, task: Task, user: User, setting: Setting, room: int) -> list[Encoded]:
    """What goes through the model for a user's questions: prompts to continue, or prompts with each label."""
    examples = query_examples(task, user, setting)
    prompts = encode(tokenizer, examples, room, answers=False)
    if task.kind == "text":  # `rows_of` leaves the last token out, which is only predicted
        return [Encoded((*prompt.tokens, 0), len(prompt.tokens)) for prompt in prompts]
    found = []
    for example, prompt in zip(examples, prompts, strict=True):
        prefix = answer_text(example.prompt, "")
        for label in encode_answers(tokenizer, [prefix + label for label in task.labels]):
            found.append(Encoded((*prompt.tokens, *label), len(prompt.tokens)))
    return found


def joined(rows: Iterable[SlotRow]) -> int:
    """Tokens of one tree of all the rows' sequences."""
    return len(pack([example.tokens[:-1] for row in rows for example in row.examples]))


def beginning(prompts: Sequence[Sequence[int]]) -> float:
    """The share of a prompt, on the average, that all prompts begin with."""
    common = 0
    while len({prompt[common : common + 1] for prompt in map(tuple, prompts)}) == 1 and len(prompts[0]) > common:
        common += 1
    return common * len(prompts) / sum(len(prompt) for prompt in prompts)


def groups(users: Sequence[User]) -> Iterator[Sequence[User]]:
    """The users who are answered together."""
    for first in range(0, len(users), USERS_TOGETHER):
        yield users[first : first + USERS_TOGETHER]


def main() -> None:
    """Print a line for each task and setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder with one folder for each task.")
    parser.add_argument("--k", default="0,1", help="retrieved items")
    parser.add_argument("--pass-tokens", type=int, default=512)
    parser.add_argument("--layers", type=int, default=10, help="N of top:N")
    given = parser.parse_args()
    base = load_base()
    layers = base.model.config.num_hidden_layers
    below = 1 - given.layers / layers
    print(f"share of all {layers} layers' work on questions that modules on the top {given.layers} could save")
    print(
        f"task             k  users  tokens  {USERS_TOGETHER} users together  in a pass  one question, kept beginning"
    )
    for task in (task for task in BUILT_IN.values() if (given.data / task.name).is_dir()):
        users = read_dataset(given.data / task.name, task).users
        for k in map(int, given.k.split(",")):
            own = together = cut = passed = 0
            prompts: list[Sequence[int]] = []
            for group in groups(users):
                texts = [asked(base.tokenizer, task, user, Setting(k=k), 2048 - 64) for user in group]
                prompts += [each.tokens[: each.answer_start] for listed in texts for each in listed]
                rows = [row for slot, listed in enumerate(texts) for row in rows_of(slot, listed, 10**9)]
                parts = [row for slot, listed in enumerate(texts) for row in rows_of(slot, listed, given.pass_tokens)]
                own += sum(len(row.row) for row in rows)
                cut += sum(len(row.row) for row in parts)
                together += joined(rows)
                passed += sum(joined(part) for part in passes(parts, given.pass_tokens))
            shares = (1 - together / own, 1 - passed / cut, beginning(prompts))
            print(
                f"{task.name:16} {k}  {len(users):5}  {own:6}" + "".join(f"  {below * each:13.1%}" for each in shares)
            )


if __name__ == "__main__":
    main()
