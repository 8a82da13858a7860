"""Columns for a verdict's reason and for search, a table for retention, an index for a station's events."""

from uuid import UUID

from peewee import BigIntegerField, CharField, TextField, UUIDField

from kit.sql import execute
from models import fold


def up(migrator, db):
    class Retention(db.Model):
        deleted = BigIntegerField()  # at most one row: `updated` in the last change that retention deleted
        deleted_id = UUIDField()  # and the transaction's id

    migrator.migrate(
        migrator.add_column("transaction", "reason", CharField(255, null=True)),
        migrator.add_column("transaction", "equipment", CharField(255, null=True)),
        migrator.add_column("station", "folded", TextField(null=True)),  # for search; null: by release 1.1
        migrator.add_index("transaction", ("station_id", "updated", "id")),
    )
    db.create_tables([Retention])
    # Release 1.1 did not note what it deleted: perhaps everything before the oldest transaction.
    for (oldest,) in execute(db, 'SELECT min(updated) FROM "transaction" HAVING count(*) > 0'):
        Retention.insert(id=1, deleted=oldest - 1, deleted_id=UUID(int=0)).execute()
    for row_id, description in execute(db, "SELECT id, description FROM station"):
        execute(db, "UPDATE station SET folded = ? WHERE id = ?", fold(description), row_id)


def down(migrator, db):
    db.execute_sql("DROP TABLE retention")
    migrator.migrate(
        migrator.drop_index("transaction", "transaction_station_id_updated_id"),
        migrator.drop_column("station", "folded"),
        migrator.drop_column("transaction", "equipment"),
        migrator.drop_column("transaction", "reason"),
    )
