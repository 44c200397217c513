"""One certificate for all nodes of a cluster of this machine, signed by itself: who has no copy of it is refused."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

DAYS = 365


def make_certificate(certificate: Path, key: Path, *, host: str) -> None:
    """Write both, PEM, for their owner alone."""
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "raymlp cluster")])
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ip_address(host))])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder(
        subject, subject, private.public_key(), x509.random_serial_number(), now - timedelta(minutes=5), now + timedelta(days=DAYS)
    )
    builder = builder.add_extension(names, critical=False).add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    pem = serialization.Encoding.PEM
    texts = {
        certificate: builder.sign(private, hashes.SHA256()).public_bytes(pem),
        key: private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    }
    for path, text in texts.items():
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(text)
