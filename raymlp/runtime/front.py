"""HAProxy's last inch: what Ray Serve's template of its config leaves out, put in by a script that stands in for the program.

Ray Serve 2.60 writes HAProxy's config anew at every change and starts the program with it; TLS and the addresses of HAProxy's own pages
cannot be set. The script changes three things and hands over:

- with a certificate, the endpoint's address speaks TLS (1.2 or later);
- the pages of statistics and metrics are there for this machine alone, where the template opens them to everybody;
- nothing listens at the endpoint's address until the config has a route: a HAProxy that has just started answers 404 to everything.

A config in which the script does not find these places stops the start: the endpoint never runs without what was asked for.
No Ray is imported.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from raymlp.config.serve import Tls
from raymlp.core.errors import ServingError

SCRIPT = """#!/bin/sh
# Written by raymlp: changes the config that Ray Serve wrote, in its place, then becomes HAProxy. Twice changes no more than once.
set -eu
config= before=
for word; do
  [ "$before" != -f ] || config=$word
  before=$word
done
sed -i -e '/^listen stats/,$ s/^\\( *bind \\)\\*:/\\1127.0.0.1:/' \\
    -e '/^frontend prometheus/,/bind/ s/^\\( *bind \\):/\\1127.0.0.1:/' \\
    -e '/^frontend http_frontend/,/bind/ {{ / ssl crt /! s|^\\( *bind .*\\)$|\\1{tls}| }}' "$config"
grep -q '^ *use_backend ' "$config" || sed -i '/^frontend http_frontend/,/bind/ s/^ *bind .*$/    # no route, no bind/' "$config"
must_have() {{
  sed -n "/^$1/,/bind/ p" "$config" | grep -q "$2" || {{ echo "raymlp: HAProxy's config has no address under '$1'" >&2; exit 1; }}
}}
must_have 'listen stats' '^ *bind 127.0.0.1:'
must_have 'frontend prometheus' '^ *bind 127.0.0.1:'
must_have 'frontend http_frontend' '^ *bind .*{tls}$\\|no route, no bind'
exec {binary} "$@"
"""


def script_of(folder: Path) -> Path:
    """Where the script of a folder lies."""
    return folder / "haproxy"


def lay_out(folder: Path, binary: Path, tls: Tls | None) -> None:
    """Make the folder of HAProxy's files, with the script. Raises ServingError for a certificate or key that cannot be read."""
    folder.mkdir(mode=0o700, exist_ok=True)
    words = ""
    if tls is not None:
        check_certificate(tls)
        # HAProxy looks for the key of a certificate beside it. Links, so that renewed files are read at the next change.
        for name, path in (("endpoint.pem", tls.certificate), ("endpoint.pem.key", tls.key)):
            link = folder / name
            link.unlink(missing_ok=True)
            link.symlink_to(Path(path).absolute())
        words = f" ssl crt {folder / 'endpoint.pem'} ssl-min-ver TLSv1.2"
    script = script_of(folder)
    script.write_text(SCRIPT.format(tls=words, binary=shlex.quote(str(binary))))
    script.chmod(0o700)


def check_certificate(tls: Tls) -> None:
    """Raises ServingError when the files are no certificate with its key."""
    import ssl

    for name, path in (("certificate", tls.certificate), ("key", tls.key)):
        if not os.access(path, os.R_OK):
            raise ServingError(f"serve.tls.{name} is {path}, which cannot be read; expected a PEM file. Set serve.tls.{name}.")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        raise ServingError(
            f"serve.tls.certificate {tls.certificate} and serve.tls.key {tls.key} do not go together ({error}); expected a certificate "
            "(with its chain after it) and its key without a password, both PEM."
        ) from None


def _no_password() -> str:
    raise ValueError("the key has a password")
