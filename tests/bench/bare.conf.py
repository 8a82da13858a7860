"""gunicorn with the service's settings, on one processor, without the hooks that start the service.

With `BARE=spread` the kernel may move its threads between processors, as usual.
With `BARE=hollow` the application is that of `hollow.py`.
"""

import os
import runpy
from pathlib import Path

HOOKS = ("on_starting", "when_ready", "post_worker_init", "worker_exit")
service = runpy.run_path(str(Path(__file__).parent.parent.parent / "gunicorn.conf.py"))
globals().update(
    {name: value for name, value in service.items() if not name.startswith("_") and name not in HOOKS}
)


def post_worker_init(worker):
    if os.environ["BARE"] != "spread":
        service["stay_on_one_processor"]()
    if os.environ["BARE"] == "hollow":
        import hollow

        hollow.start()
