"""Opens the store of an address with what its credentials say, and with nothing else.

Without credentials requests are not signed: a store's library would otherwise ask the cloud's metadata service for the
rights of the node, which are no tenant's.
"""

import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from ipaddress import ip_address
from typing import Any
from urllib.parse import SplitResult, urlsplit

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, S3Store

from sluice_files.credentials import Credentials, endpoint, parsed_endpoint
from sluice_files.errors import BESIDE, Failure, FileError

Store = S3Store | GCSStore | AzureStore
Opener = tuple[Callable[..., Store], SplitResult]
"""Makes the store, once it is told how to ask; and where that is."""

_RETRIES = {
    "max_retries": 5,
    "retry_timeout": timedelta(seconds=180),
    "backoff": {"init_backoff": timedelta(milliseconds=200), "max_backoff": timedelta(seconds=5), "base": 2},
}
_TIMEOUTS = {
    "connect_timeout": timedelta(seconds=10),
    "read_timeout": timedelta(seconds=120),
    "timeout": timedelta(seconds=600),
}
"""Of one request, which moves a part of a large file: a whole one takes as long as it takes. read_timeout is also how
long a part may take on its way there, for the answer comes after it."""
_DEFAULT_REGION = "us-east-1"
_TRUE = ("true", "1", "yes")


def open_store(uri: str, credentials: Credentials) -> tuple[Store, str]:
    """The store below an address, and where it is, for messages. Asks nobody yet.

    Raises:
        FileError: Refused: the credentials are incomplete, or mean nothing.
    """
    kind, _, rest = uri.partition("://")
    bucket, _, path = rest.strip("/").partition("/")
    openers = {"s3": _s3, "gs": _google, "az": _azure}
    if kind not in openers or not bucket:
        raise FileError(Failure.INVALID, f"{uri} is no address of an object store. Write s3://, gs:// or az://bucket.")
    opened, there = openers[kind](uri, bucket, credentials)
    client: dict[str, Any] = {**_TIMEOUTS, "allow_http": there.scheme == "http", "user_agent": "sluice"}
    if authority := credentials.first("AWS_CA_BUNDLE"):
        client["root_certificate"] = authority
    try:
        store = opened(prefix=path or None, client_options=client, retry_config=_RETRIES)
    except (BaseError, ValueError) as error:
        problem = credentials.hidden(str(error).partition("\n")[0])
        raise FileError(
            Failure.REFUSED, f"{uri}: {problem}. Correct the values of the Secret {credentials.secret}."
        ) from None  # its text may hold what credentials are made of
    return store, f"{there.netloc}{there.path}"


def _s3(uri: str, bucket: str, credentials: Credentials) -> Opener:
    values = credentials.first
    region = values("AWS_REGION", "AWS_DEFAULT_REGION") or _DEFAULT_REGION
    there = endpoint(uri, credentials, "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL") or urlsplit(
        f"https://s3.{region}.amazonaws.com"
    )
    if bucket in there.path.split("/"):
        raise FileError(
            Failure.REFUSED,
            f"{uri}: the endpoint in the Secret {credentials.secret} has the bucket {bucket} in its path, which the "
            f"address names already. Write it without: {there.scheme}://{there.netloc}",
        )
    in_host = (values("AWS_VIRTUAL_HOSTED_STYLE_REQUEST") or "").lower() in _TRUE
    if in_host and _is_ip(there.hostname or ""):
        raise FileError(
            Failure.REFUSED,
            f"{uri}: a bucket can't be a part of the host's name {there.hostname}, which is an IP address. Set "
            f"AWS_VIRTUAL_HOSTED_STYLE_REQUEST: 'false' in the Secret {credentials.secret}.",
        )
    if in_host and not there.netloc.startswith(f"{bucket}."):
        there = there._replace(netloc=f"{bucket}.{there.netloc}")
    config: dict[str, Any] = {
        "region": region,
        "endpoint": there.geturl(),
        "virtual_hosted_style_request": in_host,
        "disable_bulk_delete": True,  # which not every store has
        "disable_tagging": True,
    }
    known = _all_or_none(uri, credentials, "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    if not known:
        return partial(S3Store, bucket, **config, skip_signature=True), there
    config |= {"access_key_id": known["AWS_ACCESS_KEY_ID"], "secret_access_key": known["AWS_SECRET_ACCESS_KEY"]}
    if token := values("AWS_SESSION_TOKEN"):
        config["session_token"] = token
    return partial(S3Store, bucket, **config, skip_signature=False), there


def _is_ip(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _google(uri: str, bucket: str, credentials: Credentials) -> Opener:
    there = urlsplit("https://storage.googleapis.com")
    key = credentials.first("GOOGLE_APPLICATION_CREDENTIALS")
    if key is None:
        return partial(GCSStore, bucket, skip_signature=True), there
    remedy = (
        "Make a key of a service account (gcloud iam service-accounts keys create key.json --iam-account ...) and put "
        f"the file into the Secret {credentials.secret}: --from-file=GOOGLE_APPLICATION_CREDENTIALS=key.json"
    )
    try:
        content = json.loads(key)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise FileError(Failure.REFUSED, f"{uri}: GOOGLE_APPLICATION_CREDENTIALS is not a file of JSON. {remedy}")
    if content.get("type", "service_account") != "service_account":
        raise FileError(
            Failure.REFUSED, f"{uri}: GOOGLE_APPLICATION_CREDENTIALS is of type {content['type']}. {remedy}"
        )
    if base := content.get("gcs_base_url"):
        there = parsed_endpoint(uri, "gcs_base_url", base)
    return partial(GCSStore, bucket, service_account_key=key, skip_signature=False), there


def _azure(uri: str, container: str, credentials: Credentials) -> Opener:
    values = credentials.first
    account = values("AZURE_STORAGE_ACCOUNT", "AZURE_STORAGE_ACCOUNT_NAME")
    if account is None:
        raise FileError(
            credentials.failure,
            f"{uri}: an az:// address needs credentials with the key AZURE_STORAGE_ACCOUNT, the name of the storage "
            f"account, even where the container is public. Name such a Secret in {BESIDE}.",
        )
    there = endpoint(uri, credentials, "AZURE_STORAGE_ENDPOINT") or urlsplit(f"https://{account}.blob.core.windows.net")
    config: dict[str, Any] = {"account_name": account, "endpoint": there.geturl(), "disable_tagging": True}
    client = _all_or_none(uri, credentials, "AZURE_CLIENT_ID", "AZURE_CLIENT_SECRET", "AZURE_TENANT_ID")
    if key := values("AZURE_STORAGE_KEY", "AZURE_STORAGE_ACCOUNT_KEY"):
        config |= {"account_key": key, "credential_type": "access_key"}
    elif token := values("AZURE_STORAGE_SAS_TOKEN"):
        config |= {"sas_key": token.lstrip("?"), "credential_type": "sas_token"}
    elif client:
        config |= {name.removeprefix("AZURE_").lower(): value for name, value in client.items()}
        config["credential_type"] = "client_secret"
    else:
        config["skip_signature"] = True
    return partial(AzureStore, container, **config), there


def _all_or_none(uri: str, credentials: Credentials, *keys: str) -> Mapping[str, str]:
    """Keys that mean something only together. With a part of them the library would look for others elsewhere."""
    found = {key: credentials.values[key] for key in keys if key in credentials.values}
    if found and (missing := [key for key in keys if key not in found]):
        raise FileError(
            Failure.REFUSED,
            f"{uri}: the Secret {credentials.secret} has {', '.join(found)} without {', '.join(missing)}. Add it.",
        )
    return found
