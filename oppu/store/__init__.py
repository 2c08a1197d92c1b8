"""The store: who owns which history and which module, on disk and atomically."""

from oppu.store.checkpoints import NewCheckpoint
from oppu.store.files import write_atomically
from oppu.store.modules import NewModule
from oppu.store.records import BaseRecord, Deleted, ModuleRecord, ProfileRecord
from oppu.store.store import Store

__all__ = [
    "BaseRecord",
    "Deleted",
    "ModuleRecord",
    "NewCheckpoint",
    "NewModule",
    "ProfileRecord",
    "Store",
    "write_atomically",
]
