"""Undo the newest migration, so that the release before it can use the database: `python -m kit.undo`.

Stop the service first. Data that only the newer release stores is lost.
"""

from playhouse.migrations import MigrationError, Runner

from kit.files import is_open
from kit.settings import ROOT, load
from kit.sql import begin, connect, execute, is_postgresql, path
from kit.storage import ERRORS

SESSIONS = """SELECT 1 FROM pg_stat_activity WHERE datname = current_database()
    AND backend_type = 'client backend' AND pid <> pg_backend_pid()"""

if __name__ == "__main__":
    database = connect(load().database_url, 1)
    try:
        if execute(database, SESSIONS) if is_postgresql(database) else is_open(path(database)):
            raise SystemExit("Nothing was undone: a process uses this database, so stop the service first.")
        with begin(database):
            undone = Runner(database, str(ROOT / "migrations")).down()
    except (*ERRORS, MigrationError) as error:
        raise SystemExit(f"Nothing was undone: {error}") from None
    if not undone:
        raise SystemExit("Nothing was undone: DATABASE_URL names a database without migrations.")
    print(f"Undone: {', '.join(undone)}. Now start the release before this one.")
