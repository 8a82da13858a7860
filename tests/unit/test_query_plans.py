"""The plan of every query: none scans a table."""

import pytest

from kit import storage
from models import FIRST
from queries import NOW
from schemas import Status

only_sqlite = pytest.mark.parametrize("emptied", ["sqlite"], indirect=True)
only_postgresql = pytest.mark.parametrize("emptied", ["postgresql"], indirect=True)


def every_query(queries) -> None:
    """Call everything in `models` that reads or writes."""
    (key,) = queries.create()
    storage.ping(queries.database)
    queries.get_station(1)
    queries.list_stations(5, 1)
    queries.change_station(1, "other")
    queries.create_station("another")
    queries.delete_station(2)
    queries.get_transaction(key)
    for after in (None, key):
        for wanted in ([], [Status.ERROR]):
            for station in (None, 1):
                queries.list_transactions(5, after, wanted, station)
                queries.list_transactions(5, after, wanted, station, idempotency_key="é")
    queries.latest_transactions([1, 2])
    for station in (None, 1):
        queries.count_transactions(NOW, NOW + 1_000_000, 10_000, station)
    queries.statuses([key])
    queries.create(key="key")
    queries.room()
    queries.pending()
    queries.newest_change()
    for station in (None, 1):
        queries.changes((NOW, key), 5, station)
    for waiting in (False, True):
        queries.claim(NOW, 5, waiting)
        queries.ask_again(NOW, waiting)
    queries.expire(NOW)
    queries.settle({key: "ERROR"}, NOW)
    queries.delete_finished(NOW + 1, FIRST, 5)
    queries.deleted_until()


@pytest.fixture
def planned(caplog, queries) -> list[tuple]:
    """Every statement that looks for rows, with its values."""
    with caplog.at_level("DEBUG", "peewee"):
        every_query(queries)
    statements = [
        record.msg for record in caplog.records if record.name == "peewee" and record.threadName != "ledger"
    ]
    planned = [
        (sql, values)
        for sql, values in statements
        if sql.split()[0] in ("SELECT", "UPDATE", "DELETE", "WITH")
    ]
    assert len(planned) > 25
    return planned


@only_postgresql
def test_no_query_needs_to_scan_a_table_in_postgresql(database, planned):
    # PostgreSQL scans a table this small unless we forbid it. Then every query must have an index.
    database.execute_sql("SET enable_seqscan = off")
    for sql, values in planned:
        plan = "\n".join(step for (step,) in database.execute_sql(f"EXPLAIN {sql}", values).fetchall())
        assert "Seq Scan" not in plan.replace("Seq Scan on station_id_seq", ""), (plan, sql)  # one row


@only_sqlite
def test_no_query_scans_a_table_in_sqlite(database, planned):
    for sql, values in planned:
        for *_, step in database.execute_sql(f"EXPLAIN QUERY PLAN {sql}", values).fetchall():
            # In the order of the primary key, a scan stops after a page; what is due was limited before.
            orders = "t USING INDEX sqlite_autoindex_transaction_1", "COVERING INDEX transaction_updated_id"
            allowed = step.endswith(orders) and "ORDER BY" in sql
            allowed = allowed or step in ("SCAN due", "SCAN given", "SCAN opened", "SCAN part", "SCAN step")
            assert "SCAN" not in step or allowed or "CONSTANT" in step, (step, sql)


def test_changes_of_a_station_are_found_by_its_index(database, planned):
    explain = "EXPLAIN QUERY PLAN"
    if storage.is_postgresql(database):
        explain = "EXPLAIN"
        for step in ("seqscan", "sort", "incremental_sort"):
            database.execute_sql(f"SET enable_{step} = off")
    ((sql, values),) = [query for query in planned if "(t.station_id, t.updated, t.id) >" in query[0]]
    assert "transaction_station_id_updated_id" in str(
        database.execute_sql(f"{explain} {sql}", values).fetchall()
    )
