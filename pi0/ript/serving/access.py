"""Who may ask: a token and TLS, both of which an address beyond this machine demands."""

import hmac
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

_SCHEMES = ("api-key", "bearer")  # openpi's client sends the first, Prometheus and curl users the second
_MIN_TOKEN = 16


@dataclass(frozen=True)
class Access:
    """What a client has to bring."""

    token: bytes | None = None
    tls: ssl.SSLContext | None = None

    def admits(self, authorization: str | None) -> bool:
        """Return whether a request's Authorization header has the token; in constant time."""
        if self.token is None:
            return True
        scheme, _, token = (authorization or "").partition(" ")
        given = token.strip().encode(errors="surrogateescape")
        return hmac.compare_digest(given, self.token) and scheme.lower() in _SCHEMES


def read_access(host: str, token_file: Path | None, tls_cert: Path | None, tls_key: Path | None) -> Access:
    """Return what clients of a server at `host` have to bring.

    Raises:
        ValueError: The host is beyond this machine and token or TLS is missing, or a file is not usable.
    """
    if (tls_cert is None) != (tls_key is None):
        raise ValueError("--tls-cert, --tls-key: expected both or none, found one of them")
    if not is_this_machine(host) and (token_file is None or tls_cert is None):
        raise ValueError(
            f"--host: {host} can be reached from other machines, which needs --token-file, --tls-cert and "
            "--tls-key; without them serve on 127.0.0.1 and reach it by an SSH tunnel "
            "(ssh -L 8000:127.0.0.1:8000)"
        )
    token = None if token_file is None else _read_token(token_file)
    tls = None if tls_cert is None or tls_key is None else _tls_context(tls_cert, tls_key)
    return Access(token, tls)


def is_this_machine(host: str) -> bool:
    """Return whether only programs of this machine reach an address; a name other than localhost may not."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_token(file: Path) -> bytes:
    try:
        token = file.read_bytes().strip()
    except OSError as error:
        raise ValueError(f"--token-file: cannot read {file}: {error.strerror}") from error
    is_text = all(0x21 <= byte < 0x7F for byte in token)
    if len(token) < _MIN_TOKEN or not is_text:
        raise ValueError(
            f"--token-file: expected a line of at least {_MIN_TOKEN} visible ASCII characters without spaces "
            f"in {file} (make one: openssl rand -hex 32), found {len(token)} bytes"
        )
    return token


def _tls_context(cert: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    for name, file in {"--tls-cert": cert, "--tls-key": key}.items():
        if not file.is_file():
            raise ValueError(f"{name}: no file at {file}")
    try:
        context.load_cert_chain(cert, key, password=_no_password)
    except OSError as error:  # ssl.SSLError is one
        raise ValueError(
            f"--tls-cert, --tls-key: {cert} and {key} are no certificate and key: {error}"
        ) from error
    return context


def _no_password() -> str:
    """Answer for a key with a password, which a server that starts unattended cannot ask for."""
    raise OSError("the key has a password; write one without")
