"""The upper limit: a Bottle route that only parses and answers, served with `bare.conf.py`."""

from datetime import UTC, datetime
from uuid import UUID

import msgspec
from bottle import Bottle, request, response

from schemas import NewTransaction, Station, Status, Transaction

KEY = UUID("01a20ba3-dd5d-70fd-810d-baf08fa0945c")
NOW = datetime(2026, 3, 28, 0, 18, 13, 786299, tzinfo=UTC)
REST = Status.PENDING, NOW, NOW, 0, None, None
ANSWER = msgspec.json.encode(Transaction(KEY, Station(1, "Teste"), *REST))

app = Bottle()


@app.post("/transactions")
def create_transaction():
    body = msgspec.json.decode(request.body.read(), type=NewTransaction)
    response.status = 201
    response.content_type = "application/json"
    response.set_header("Location", f"/transactions/{KEY}")
    return msgspec.json.encode(Transaction(KEY, Station(body.station_id, "Teste"), *REST))
