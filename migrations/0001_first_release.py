"""Stations and transactions. Tables from before there were migrations stay as they are."""

from peewee import (
    AutoField,
    BigIntegerField,
    CharField,
    ForeignKeyField,
    Model,
    SmallIntegerField,
    SqliteDatabase,
    UUIDField,
)
from playhouse.sqlite_ext import AutoIncrementField


def up(migrator, db):
    class Station(Model):
        # SQLite has to be told that an id must not be given out again after its row was deleted.
        id = AutoIncrementField() if isinstance(db, SqliteDatabase) else AutoField()
        description = CharField(255)

        class Meta:
            database = db

    class Transaction(Model):
        id = UUIDField(primary_key=True)
        station = ForeignKeyField(Station, on_delete="RESTRICT", index=False)
        status = CharField(9)
        created = BigIntegerField()
        updated = BigIntegerField()
        idempotency_key = CharField(255, null=True)
        attempts = SmallIntegerField()
        asked_at = BigIntegerField(null=True)
        retry_at = BigIntegerField(null=True)
        expires_at = BigIntegerField(null=True)

        class Meta:
            database = db
            indexes = (
                (("station", "id"), False),
                (("status", "id"), False),
                (("station", "status", "id"), False),
            )

    # Those of `models.WAITS` and `models.OPEN`: what waits to be asked, and what was asked and not answered.
    pending, keyed = Transaction.retry_at.is_null(False), Transaction.idempotency_key.is_null(False)
    waits, opened = pending & Transaction.expires_at.is_null(), pending & (Transaction.expires_at > 0)
    Transaction.add_index(Transaction.index(Transaction.retry_at, where=waits))
    Transaction.add_index(Transaction.index(Transaction.expires_at, where=opened))
    Transaction.add_index(Transaction.index(Transaction.idempotency_key, unique=True, where=keyed))
    db.create_tables([Station, Transaction])
