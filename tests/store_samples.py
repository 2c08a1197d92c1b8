"""Small values for the tests of the store: a module of two layers, a history, and the words of a put."""

from pathlib import Path
from typing import Any

import torch
from sqlalchemy import func, select

from oppu.model.module import Module
from oppu.records import HistoryItem, Profile
from oppu.store import NewCheckpoint, ProfileRecord, Store
from oppu.store.schema import PUTS, USERS

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "tiny",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj", "v_proj"],
}
HISTORY = (
    HistoryItem(id="a", fields={"text": "a first thing", "title": "naïve \u0000 ☃"}, time=1.5),
    HistoryItem(id="b", fields={"text": "a second thing"}, time=1.5),
    HistoryItem(id="a", fields={}, time=-3.0),
)


def tiny_module(seed: int = 0, **config: object) -> Module:
    """LoRA of rank 2 on the query projections of two layers."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(2):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_"
        tensors[name + "A.weight"] = torch.randn(2, 5, generator=generator)
        tensors[name + "B.weight"] = torch.randn(3, 2, generator=generator)
    return Module(tensors, CONFIG | config)


def whose(user_id: str = "ann", **changed: Any) -> dict[str, Any]:
    """What put_module asks for beside the module."""
    values = {"task": "movie_tagging", "setting": "k0", "base_name": "tiny", "base_fingerprint": "f" * 64}
    return values | {"user_id": user_id, "training": {"seed": 1, "losses": [0.5, 0.25]}} | changed


def told_of(user_id: str, text: str = "likes films", made: str = "count") -> ProfileRecord:
    """Two profiles along a history of three items."""
    along = (Profile(text, -3.0, 1), Profile(f"{text} indeed", 1.5, 3))
    return ProfileRecord(user_id, "movie_tagging", made, "h" * 64, "d" * 64, ("a", "b", "a"), along)


def under_way(user_id: str = "ann", data: bytes = b"under way", **changed: Any) -> NewCheckpoint:
    """A training of the module that `whose` names, by the fingerprint p."""
    values = {"task": "movie_tagging", "setting": "k0", "base_fingerprint": "f" * 64, "fingerprint": "p" * 64}
    return NewCheckpoint(user_id=user_id, data=data, **(values | changed))


def held(store: Store, user_id: str = "ann", **changed: Any) -> bytes | None:
    """What the store has of such a training."""
    new = under_way(user_id, **changed)
    return store.checkpoint(user_id, new.task, new.setting, new.base_fingerprint, new.fingerprint)


def same(left: Module, right: Module) -> bool:
    """Whether two modules have the same config and bitwise the same tensors."""
    return (
        left.config == right.config
        and left.tensors.keys() == right.tensors.keys()
        and all(torch.equal(tensor, right.tensors[name]) for name, tensor in left.tensors.items())
    )


def files_with(folder: Path, needle: str) -> list[str]:
    """The files and folders under `folder` whose bytes or names hold `needle`."""
    found = [path for path in folder.rglob("*") if needle in path.name]
    found += [path for path in folder.rglob("*") if path.is_file() and needle.encode() in path.read_bytes()]
    return sorted(str(path.relative_to(folder)) for path in found)


def module_folders(store: Store, kind: str = "modules") -> list[str]:
    """The folders of modules (or checkpoints) where the store keeps its files, with or without a row."""
    if store.files is None or not store.files.startswith("s3://"):
        root = store.folder if store.files is None else Path(store.files.removeprefix("file://"))
        return sorted({str(file.parent.relative_to(root)) for file in (root / kind).rglob("*") if file.is_file()})
    import s3fs

    root = store.files.removeprefix("s3://")
    found = s3fs.S3FileSystem(use_listings_cache=False).find(f"{root}/{kind}")
    return sorted({key.removeprefix(root + "/").rsplit("/", 1)[0] for key in found})


def rows_with(store: Store, needle: str) -> list[str]:
    """The tables of the store's database with a row in which `needle` stands."""
    with store._database.reading() as connection:
        return [
            table.name
            for table in USERS.metadata.sorted_tables
            if any(needle in str(tuple(row)) for row in connection.execute(select(table)))
        ]


def notes(store: Store) -> int:
    """Notes of puts that are not ended."""
    with store._database.reading() as connection:
        return int(connection.scalar(select(func.count()).select_from(PUTS)) or 0)
