"""An index by `updated`, which orders the commits."""


def up(migrator, db):
    migrator.migrate(migrator.add_index("transaction", ("updated", "id")))
