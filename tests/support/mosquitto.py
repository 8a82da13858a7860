"""A Mosquitto with extra lines in its files."""

from pathlib import Path

from programs import ROOT, Broker


class AmendedBroker(Broker):
    """Mosquitto with the project's files and extra lines at their ends."""

    def __init__(self, folder: Path, conf: str = "", acl: str = "", **options):
        super().__init__(folder, **options)
        files = folder / "amended"
        (files / "deploy").mkdir(parents=True, exist_ok=True)
        added = {"deploy/mosquitto.sh": "", "mosquitto.conf": conf, "deploy/mosquitto.acl": acl}
        for name, more in added.items():
            (files / name).write_text((ROOT / name).read_text() + more)
        self.command[self.command.index("deploy/mosquitto.sh")] = str(files / "deploy/mosquitto.sh")
