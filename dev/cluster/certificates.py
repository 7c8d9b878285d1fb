"""The certificates with which the parts of one cluster know each other, and kubeconfigs with them."""

import base64
import json
from dataclasses import dataclass
from pathlib import Path

from dev.commands import need, run

DAYS = "3650"
REMEDY = "`apt-get install openssl`"


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    certificate: Path
    key: Path


class Authority:
    """The certificate authority of one cluster, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        """Open the authority that was made in this folder."""
        self._folder = folder
        self._openssl = need("openssl", REMEDY)
        self.pair = Pair(folder / "ca.crt", folder / "ca.key")

    def make(self) -> None:
        """Make its own pair, on which all others hang."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._new_key(self.pair.key)
        run(
            [
                *(self._openssl, "req", "-x509", "-new", "-sha256", "-days", DAYS, "-key", self.pair.key),
                *("-subj", "/CN=sluice-local-cluster", "-out", self.pair.certificate),
            ]
        )

    def named(self, name: str) -> Pair:
        """A pair that was made earlier."""
        return Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")

    def serving(self, name: str, alternatives: list[str]) -> Pair:
        """A pair for a server; `alternatives` are its names and addresses, as `DNS:...` or `IP:...`."""
        use = f"extendedKeyUsage=serverAuth\nsubjectAltName={','.join(alternatives)}\n"
        return self._signed(name, f"/CN={name}", use)

    def client(self, name: str, group: str = "") -> Pair:
        """A pair for a client, who is the user `name` in the group `group`."""
        subject = f"/O={group}/CN={name}" if group else f"/CN={name}"
        return self._signed(name.replace(":", "-"), subject, "extendedKeyUsage=clientAuth\n")

    def key_pair(self, name: str) -> Pair:
        """A key and its public half, for signing tokens."""
        pair = Pair(self._folder / f"{name}.pub", self._folder / f"{name}.key")
        self._new_key(pair.key)
        run([self._openssl, "pkey", "-in", pair.key, "-pubout", "-out", pair.certificate])
        return pair

    def kubeconfig(self, file: Path, server: str, client: Pair) -> Path:
        """Write a kubeconfig (it is JSON, which is YAML) for the holder of a client pair."""
        file.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "sluice",
                    "contexts": [{"name": "sluice", "context": {"cluster": "sluice", "user": "sluice"}}],
                    "clusters": [
                        {
                            "name": "sluice",
                            "cluster": {
                                "server": server,
                                "certificate-authority-data": _text(self.pair.certificate),
                            },
                        }
                    ],
                    "users": [
                        {
                            "name": "sluice",
                            "user": {
                                "client-certificate-data": _text(client.certificate),
                                "client-key-data": _text(client.key),
                            },
                        }
                    ],
                },
                indent=1,
            )
        )
        file.chmod(0o600)
        return file

    def _signed(self, name: str, subject: str, use: str) -> Pair:
        pair = self.named(name)
        request, extensions = self._folder / f"{name}.csr", self._folder / f"{name}.ext"
        self._new_key(pair.key)
        extensions.write_text(f"keyUsage=digitalSignature\n{use}")
        run([self._openssl, "req", "-new", "-key", pair.key, "-subj", subject, "-out", request])
        run(
            [
                *(self._openssl, "x509", "-req", "-sha256", "-days", DAYS, "-in", request),
                *("-CA", self.pair.certificate, "-CAkey", self.pair.key, "-CAcreateserial"),
                *("-extfile", extensions, "-out", pair.certificate),
            ]
        )
        return pair

    def _new_key(self, file: Path) -> None:
        run([self._openssl, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", file])


def _text(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()
