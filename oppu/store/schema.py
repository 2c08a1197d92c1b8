"""The tables, and the numbered migrations that make them: SQL that SQLite and PostgreSQL both understand.

A migration, once released, is never changed; the tables below describe the state after the last one.
JSON is kept as ASCII text, so that a text with a NUL or half a surrogate pair comes back as it was put.
"""

from sqlalchemy import BigInteger, Boolean, Column, Double, Integer, MetaData, Table, Text

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # one row for everything known of a user in a task; `deleting` hides it until the last trace is gone
        """CREATE TABLE users (
            user_id TEXT NOT NULL, task TEXT NOT NULL, deleting BOOLEAN NOT NULL,
            PRIMARY KEY (user_id, task))""",
        """CREATE TABLE history_items (
            user_id TEXT NOT NULL, task TEXT NOT NULL, position INTEGER NOT NULL,
            item_id TEXT NOT NULL, time DOUBLE PRECISION NOT NULL, fields TEXT NOT NULL,
            PRIMARY KEY (user_id, task, position),
            FOREIGN KEY (user_id, task) REFERENCES users (user_id, task))""",
        """CREATE TABLE modules (
            user_id TEXT NOT NULL, task TEXT NOT NULL, setting TEXT NOT NULL, base_fingerprint TEXT NOT NULL,
            version INTEGER NOT NULL, base_name TEXT NOT NULL, created TEXT NOT NULL, size_bytes BIGINT NOT NULL,
            sha256 TEXT NOT NULL, path TEXT NOT NULL UNIQUE, training TEXT NOT NULL,
            PRIMARY KEY (user_id, task, setting, base_fingerprint, version),
            FOREIGN KEY (user_id, task) REFERENCES users (user_id, task))""",
        """CREATE TABLE bases (
            name TEXT NOT NULL PRIMARY KEY, fingerprint TEXT NOT NULL, path TEXT NOT NULL,
            created TEXT NOT NULL, record TEXT NOT NULL)""",
    ),
    (
        # what a put is about to write, so that what a dead one left is found: paths are JSON
        """CREATE TABLE puts (
            token TEXT NOT NULL PRIMARY KEY, maker TEXT NOT NULL, started TEXT NOT NULL, paths TEXT NOT NULL)""",
        # of a base on object storage: name -> [bytes, sha256], JSON
        "ALTER TABLE bases ADD COLUMN files TEXT NOT NULL DEFAULT '{}'",
        "CREATE INDEX users_of_a_task ON users (task, user_id)",
        "CREATE INDEX users_being_deleted ON users (user_id) WHERE deleting",
    ),
    (
        # a row for each way of making a user's profiles: which items, made how, and the texts along the history
        """CREATE TABLE profiles (
            user_id TEXT NOT NULL, task TEXT NOT NULL, made TEXT NOT NULL, created TEXT NOT NULL,
            how TEXT NOT NULL, items_digest TEXT NOT NULL, item_ids TEXT NOT NULL, texts TEXT NOT NULL,
            PRIMARY KEY (user_id, task, made),
            FOREIGN KEY (user_id, task) REFERENCES users (user_id, task))""",
        "CREATE INDEX profiles_of_a_task ON profiles (task, made, user_id)",
    ),
    (
        # a training under way: its file, and of which training it is
        """CREATE TABLE checkpoints (
            user_id TEXT NOT NULL, task TEXT NOT NULL, setting TEXT NOT NULL, base_fingerprint TEXT NOT NULL,
            fingerprint TEXT NOT NULL, created TEXT NOT NULL, size_bytes BIGINT NOT NULL,
            sha256 TEXT NOT NULL, path TEXT NOT NULL UNIQUE,
            PRIMARY KEY (user_id, task, setting, base_fingerprint),
            FOREIGN KEY (user_id, task) REFERENCES users (user_id, task))""",
    ),
)

_METADATA = MetaData()

APPLIED = Table(
    "oppu_migrations",
    _METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("applied", Text, nullable=False),
)
USERS = Table(
    "users",
    _METADATA,
    Column("user_id", Text, primary_key=True),
    Column("task", Text, primary_key=True),
    Column("deleting", Boolean, nullable=False),
)
HISTORY_ITEMS = Table(
    "history_items",
    _METADATA,
    Column("user_id", Text, primary_key=True),
    Column("task", Text, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("item_id", Text, nullable=False),
    Column("time", Double, nullable=False),
    Column("fields", Text, nullable=False),
)
MODULES = Table(
    "modules",
    _METADATA,
    Column("user_id", Text, primary_key=True),
    Column("task", Text, primary_key=True),
    Column("setting", Text, primary_key=True),
    Column("base_fingerprint", Text, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("base_name", Text, nullable=False),
    Column("created", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("training", Text, nullable=False),
)
PROFILES = Table(
    "profiles",
    _METADATA,
    Column("user_id", Text, primary_key=True),
    Column("task", Text, primary_key=True),
    Column("made", Text, primary_key=True),
    Column("created", Text, nullable=False),
    Column("how", Text, nullable=False),
    Column("items_digest", Text, nullable=False),
    Column("item_ids", Text, nullable=False),
    Column("texts", Text, nullable=False),
)
CHECKPOINTS = Table(
    "checkpoints",
    _METADATA,
    Column("user_id", Text, primary_key=True),
    Column("task", Text, primary_key=True),
    Column("setting", Text, primary_key=True),
    Column("base_fingerprint", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("created", Text, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("path", Text, nullable=False),
)
BASES = Table(
    "bases",
    _METADATA,
    Column("name", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("created", Text, nullable=False),
    Column("record", Text, nullable=False),
    Column("files", Text, nullable=False),
)
PUTS = Table(
    "puts",
    _METADATA,
    Column("token", Text, primary_key=True),
    Column("maker", Text, nullable=False),
    Column("started", Text, nullable=False),
    Column("paths", Text, nullable=False),
)
