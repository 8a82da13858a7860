"""An index by the time of the last change, which orders the commits."""


def up(migrator, db):
    migrator.migrate(migrator.add_index("transaction", ("updated", "id")))
