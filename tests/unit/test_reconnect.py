"""A new connection, step by step: no deadline of an earlier one makes a question expire."""

import pytest

from batch import change
from kit.settings import Settings
from ledger import Job
from schemas import Status
from stepped import Bench


@pytest.fixture
def bench(database_url):
    bench = Bench(Settings(database_url=database_url))
    yield bench
    bench.close()


def test_a_connection_that_returns_in_the_middle_of_a_batch_expires_nothing(bench):
    """The batch was taken before SUBACK, so that it has no job yet that clears the deadlines."""
    (key,) = bench.create()
    bench.subscribe(False)
    bench.clock.advance(3600)

    def subscribe(database) -> None:
        bench.publisher.session += 1
        bench.publisher.subscribed = True

    bench.put(Job(change, subscribe))
    bench.step()
    assert bench.status(key) is Status.PENDING
    bench.step(0.3)
    assert bench.publisher.published == [key, key]
    bench.step(59)
    assert bench.status(key) is Status.PENDING
    bench.step(2)
    assert bench.status(key) is Status.EXPIRED


def test_everything_is_asked_again_though_the_word_of_the_new_connection_was_dropped(bench):
    (key,) = bench.create()
    bench.step(1)
    bench.publisher.session += 1  # the queue was full: there is no job
    bench.step(1)
    assert bench.publisher.published == [key, key]
