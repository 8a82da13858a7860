"""Stations and transactions. Tables from before there were migrations stay as they are."""

import peewee
from playhouse.sqlite_ext import AutoIncrementField

INDEXES = [("station", "id"), ("status", "id"), ("station", "status", "id")]


def up(migrator, db):
    class Station(db.Model):
        # Without AUTOINCREMENT, SQLite reuses a deleted row's id.
        id = AutoIncrementField() if isinstance(db, peewee.SqliteDatabase) else peewee.AutoField()
        description = peewee.CharField(255)

    class Transaction(db.Model):
        id = peewee.UUIDField(primary_key=True)
        station = peewee.ForeignKeyField(Station, on_delete="RESTRICT", index=False)
        status = peewee.CharField(9)
        created = peewee.BigIntegerField()
        updated = peewee.BigIntegerField()
        idempotency_key = peewee.CharField(255, null=True)
        attempts = peewee.SmallIntegerField()  # how often it was asked since its deadline last started
        asked_at = peewee.BigIntegerField(null=True)
        retry_at = peewee.BigIntegerField(null=True)  # null: not PENDING
        expires_at = peewee.BigIntegerField(null=True)  # null: it waits to be asked, its clock is stopped

        class Meta:
            indexes = tuple((columns, False) for columns in INDEXES)

    # For the conditions `models.WAITING` and `models.OPEN`.
    pending, keyed = Transaction.retry_at.is_null(False), Transaction.idempotency_key.is_null(False)
    waits, opened = pending & Transaction.expires_at.is_null(), pending & (Transaction.expires_at > 0)
    Transaction.add_index(Transaction.index(Transaction.retry_at, where=waits))
    Transaction.add_index(Transaction.index(Transaction.expires_at, where=opened))
    Transaction.add_index(Transaction.index(Transaction.idempotency_key, unique=True, where=keyed))
    db.create_tables([Station, Transaction])
