"""The bank as a cache: modules are loaded when they are asked for, and the least recently used make room."""

from collections import OrderedDict
from collections.abc import Callable, Collection

from oppu.errors import ModelError
from oppu.model.bank import Bank
from oppu.model.base import Base
from oppu.model.kinds import ModuleConfig, config_of
from oppu.model.module import Module
from oppu.store import ModuleRecord

_Key = tuple[str, str]  # where a module lies, and what it is


class Slots:
    """Modules by record in a bank that is attached to the base. Used by one thread."""

    def __init__(self, base: Base, load: Callable[[ModuleRecord], Module], count: int) -> None:
        """`load` reads and checks a module."""
        self._base = base
        self._load = load
        self._count = count
        self._bank: Bank | None = None
        self._slots: OrderedDict[_Key, int] = OrderedDict()  # the least recently used first
        self._uses: dict[int, int] = {}
        self._records: dict[int, ModuleRecord] = {}  # what lies in each slot, asked for again or not
        self._read: tuple[ModuleRecord, Module] | None = None  # waits for a slot

    def take(self, record: ModuleRecord | None) -> int | None:
        """A slot with this module, kept until it is given back; -1 for the plain base; None: wait for a free one."""
        if record is None:
            return -1
        key = _key(record)
        if key not in self._slots and not self._bring(record):
            return None
        self._slots.move_to_end(key)
        slot = self._slots[key]
        self._uses[slot] = self._uses.get(slot, 0) + 1
        return slot

    def give_back(self, slot: int) -> None:
        """One use less."""
        if slot >= 0:
            self._uses[slot] -= 1

    @property
    def records(self) -> list[ModuleRecord]:
        """Of the modules that lie in memory. Any thread may ask."""
        waiting = self._read
        return [*list(self._records.values()), *([] if waiting is None else [waiting[0]])]

    def wipe(self, records: Collection[ModuleRecord]) -> None:
        """Overwrite these modules, but for those in use."""
        unwanted = {_key(record) for record in records}
        if self._read is not None and _key(self._read[0]) in unwanted:
            self._read = None
        for slot, record in list(self._records.items()):
            if _key(record) not in unwanted or self._uses.get(slot):
                continue
            assert self._bank is not None
            self._bank.wipe(slot)
            del self._records[slot]
            if self._slots.get(_key(record)) == slot:
                del self._slots[_key(record)]

    @property
    def virtual_tokens(self) -> int:
        """How many virtual tokens stand before the text of a user whose module is in the bank."""
        return self._bank.config.virtual_tokens if self._bank is not None else 0

    def close(self) -> None:
        """Take the bank off the base."""
        if self._bank is not None:
            for slot in self._records:
                self._bank.wipe(slot)
            self._attached.__exit__(None, None, None)
            self._bank = None

    def _bring(self, record: ModuleRecord) -> bool:
        """Load the module if there is room; whether it was."""
        free = self._free()
        if free is None:
            return False
        if self._read is None or _key(self._read[0]) != _key(record):
            self._read = record, self._load(record)
        module = self._read[1]
        try:
            shape = config_of(module)
        except ModelError:
            self._read = None
            raise
        if self._bank is None or not self._bank.config.holds(shape):
            if any(self._uses.values()):  # modules of another kind, or of smaller rank, must be done first
                return False
            self._change_bank(shape)
            free = 0
        assert self._bank is not None
        self._slots = OrderedDict((k, slot) for k, slot in self._slots.items() if slot != free)
        self._read = None
        self._bank.load(free, module)
        self._slots[_key(record)] = free
        self._records[free] = record
        return True

    def _free(self) -> int | None:
        """An empty slot, else the least recently used of those not in use."""
        taken = set(self._slots.values())
        if len(taken) < self._count:
            return next(slot for slot in range(self._count) if slot not in taken)
        return next((slot for slot in self._slots.values() if not self._uses.get(slot)), None)

    def _change_bank(self, shape: ModuleConfig) -> None:
        self.close()
        self._slots.clear()
        self._uses.clear()
        self._records.clear()
        self._bank = Bank(self._base.model, shape, self._count)
        self._attached = self._bank.attach()
        self._attached.__enter__()


def _key(record: ModuleRecord) -> _Key:
    return str(record.path), record.sha256
