"""Who gave a verdict and why, descriptions folded for search, events of one station, and what was deleted."""

from peewee import SQL, BigIntegerField, CharField, Model, TextField

from models import fold


def up(migrator, db):
    class Retention(Model):
        deleted = BigIntegerField(constraints=[SQL("DEFAULT 0")])

        class Meta:
            database = db

    migrator.migrate(
        migrator.add_column("transaction", "reason", CharField(255, null=True)),
        migrator.add_column("transaction", "equipment", CharField(255, null=True)),
        migrator.add_column("station", "folded", TextField(null=True)),
        migrator.add_index("transaction", ("station_id", "updated", "id")),
    )
    db.create_tables([Retention])
    Retention.insert(id=1).execute()
    for row, description in db.execute_sql("SELECT id, description FROM station").fetchall():
        statement = f"UPDATE station SET folded = {db.param} WHERE id = {db.param}"
        db.execute_sql(statement, (fold(description), row))


def down(migrator, db):
    db.execute_sql("DROP TABLE retention")
    migrator.migrate(
        migrator.drop_index("transaction", "transaction_station_id_updated_id"),
        migrator.drop_column("station", "folded"),
        migrator.drop_column("transaction", "equipment"),
        migrator.drop_column("transaction", "reason"),
    )
