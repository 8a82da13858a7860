"""The plan of every query: none scans a table."""

import pytest

from kit import storage
from models import FIRST
from postgres import BOTH
from queries import NOW, Queries

# In the order of the primary key, a scan stops after a page; what is due was limited before.
ORDERS = "t USING INDEX sqlite_autoindex_transaction_1", "COVERING INDEX transaction_updated_id"
INDEXES = {"(t.station_id, t.updated, t.id) >": "transaction_station_id_updated_id"}
INDEXES |= {"(updated, id) >": "transaction_updated_id"}
SMALL = "SCAN due", "SCAN given", "SCAN opened", "SCAN part", "SCAN step"


def every_query(queries: Queries) -> None:
    """Call everything in `models` that reads or writes, but for the pages of test_find.py."""
    (key,) = queries.create()
    storage.ping(queries.database)
    queries.list_stations(5, 1)
    queries.change_station(1, "other")
    queries.create_station("another")
    queries.delete_station(2)
    queries.get_transaction(key)
    queries.latest_transactions([1, 2])
    for station in (None, 1):
        queries.list_transactions(5, key, [], station, idempotency_key="é")
        queries.count_transactions(NOW, NOW + 1_000_000, 10_000, station)
        queries.changes((NOW, key), 5, station)
    queries._by("id", [key.hex])
    queries.create(key="key")
    queries.room()
    queries.pending()
    queries.known_changes()
    for waiting in (False, True):
        queries.claim(NOW, 5, waiting)
        queries.ask_again(NOW, waiting)
    queries.expire(NOW)
    queries.settle([(key, "ERROR")], NOW)
    queries.delete_finished(NOW + 1, FIRST, 5)


@pytest.mark.parametrize("emptied", BOTH, indirect=True)
def test_no_query_scans_a_table(database, queries, caplog):
    with caplog.at_level("DEBUG", "peewee"):
        every_query(queries)
    statements = [one.msg for one in caplog.records if one.name == "peewee" and one.threadName != "ledger"]
    looking = [one for one in statements if one[0].split()[0] in ("SELECT", "UPDATE", "DELETE", "WITH")]
    assert len(looking) > 25
    explain, postgresql = "EXPLAIN QUERY PLAN", storage.is_postgresql(database)
    if postgresql:
        # It scans and sorts tables this small unless we forbid it. Then every query must have an index.
        explain = "EXPLAIN"
        for step in ("seqscan", "sort", "incremental_sort"):
            database.execute_sql(f"SET enable_{step} = off")
    for sql, values in looking:
        steps = [row[-1] for row in database.execute_sql(f"{explain} {sql}", values).fetchall()]
        for order, index in INDEXES.items():
            assert order not in sql or index in str(steps)
        for step in steps:
            if postgresql:
                assert "Seq Scan" not in step or "station_id_seq" in step, (steps, sql)  # one row
            else:
                allowed = "CONSTANT" in step or step in SMALL
                allowed |= step.endswith(ORDERS) and "ORDER BY" in sql
                assert "SCAN" not in step or allowed, (step, sql)
