"""Certificates for brokers, made with OpenSSL."""

import subprocess
from pathlib import Path

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
AUTHORITY = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
HERE = "DNS:localhost,IP:127.0.0.1"


def make_certificates(folder: Path) -> None:
    """Certificates of two authorities, of a broker here and one elsewhere, and of a stranger.

    `ours` signs `here` and `elsewhere`; `theirs` signs `stranger`. Each has a .pem and a .key.
    """
    (folder / "openssl.cnf").write_text("[req]\ndistinguished_name = name\n[name]\n")

    def certificate(name: str, *options: str) -> None:
        files = ["-config", "openssl.cnf", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
        command = ["openssl", "req", "-x509", *KEY, *files, "-subj", f"/CN={name}", *options]
        made = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert made.returncode == 0, made.stderr

    def signed(name: str, authority: str, address: str) -> None:
        by = ["-CA", f"{authority}.pem", "-CAkey", f"{authority}.key"]
        certificate(name, *by, "-addext", f"subjectAltName={address}")

    certificate("ours", *AUTHORITY)
    certificate("theirs", *AUTHORITY)
    signed("here", "ours", HERE)
    signed("elsewhere", "ours", "DNS:broker.example,IP:192.0.2.1")
    signed("stranger", "theirs", HERE)
