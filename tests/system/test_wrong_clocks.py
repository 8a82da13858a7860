"""The real service with a wall clock that is wrong, and is then corrected."""

import time

from faulty import Faults
from installation import metric
from programs import wait_until

HOUR = 3600
NOW, IN_1970 = 0, -time.time() + 60


def test_while_the_clock_jumps_the_newest_come_first_and_no_time_is_negative(running, tmp_path):
    faults, keys = Faults(tmp_path), []
    faults.set_clock(IN_1970)
    service = running(**faults.environment)

    def post() -> str:
        answer = service.post("/transactions", {"station_id": 1}, Prefer="wait=10")
        assert answer.json["status"] in ("COMPLETED", "ERROR")
        keys.append(answer.json["id"])
        return answer.json["created"]

    for step in (IN_1970, NOW, HOUR, -HOUR, NOW):
        faults.set_clock(step)
        made = [post() for _ in range(3)]
        if step == NOW and len(keys) == 6:  # nothing was ahead of it
            assert made[-1] >= time.strftime("%Y-%m-%dT%H:%M", time.gmtime())
        metrics = service.get("/metrics").body.decode().splitlines()
        assert min(float(line.rpartition(" ")[2]) for line in metrics if line.startswith("energy2go_")) >= 0
        assert metric(service, "energy2go_verdict_seconds_sum") < 30
        service.stop()
        service.start()
        wait_until(service.ready, "it is ready")
        post()
        assert ("ahead of the clock" in service.said()) == (step in (-HOUR, NOW) and len(keys) > 8)
    items = service.get("/transactions?limit=200").json["items"]
    assert [item["id"] for item in items] == keys[::-1]
    created = [item["created"] for item in items]
    assert created == sorted(created, reverse=True)
    assert all(item["created"] <= item["updated"] for item in items)
    updated = [item["updated"] for item in items]
    assert len(set(updated)) == len(updated)
