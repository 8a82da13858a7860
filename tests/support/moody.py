"""The service, which cannot be imported while the file that ABSENT names is there."""

import os

from app import app

__all__ = ["app"]

if os.path.exists(os.environ["ABSENT"]):
    raise OSError("something is away")
