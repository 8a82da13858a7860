"""Undo the newest migration, so that the release before it can use the database: `python -m kit.undo`.

Stop the service first. Data that only the newer release stores is lost.
"""

from playhouse.migrations import MigrationError, Runner

from kit.files import is_open
from kit.settings import ROOT, load
from kit.sql import begin, connect, is_postgresql, path
from kit.storage import ERRORS

if __name__ == "__main__":
    database = connect(load().database_url, 1)
    if not is_postgresql(database) and is_open(file := path(database)):
        raise SystemExit(f"Nothing was undone: a process has {file} open, so stop the service first.")
    try:
        with begin(database):
            undone = Runner(database, str(ROOT / "migrations")).down()
    except (*ERRORS, MigrationError) as error:
        raise SystemExit(f"Nothing was undone: {error}") from None
    if not undone:
        raise SystemExit("Nothing was undone: DATABASE_URL names a database without migrations.")
    print(f"Undone: {', '.join(undone)}. Now start the release before this one.")
