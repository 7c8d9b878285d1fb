"""The label by which the progress Service finds the leader's pod."""

from sluice_api.meta import LEADER_LABEL
from sluice_operator.cluster.client import MERGE_PATCH, Api, Patience
from sluice_operator.cluster.errors import ApiError
from sluice_operator.cluster.kinds import KINDS


async def move_leader_label(api: Api, namespace: str, pod: str, patience: Patience) -> None:
    """Take the label from all other pods and give it to ours. Outside a cluster there is no pod of ours."""
    pods = KINDS["Pod"].collection(namespace)
    labelled = await api.request("GET", pods, query={"labelSelector": f"{LEADER_LABEL}=true"})
    for other in labelled["items"]:
        if other["metadata"]["name"] != pod:
            await _label(api, f"{pods}/{other['metadata']['name']}", None, patience)
    await _label(api, f"{pods}/{pod}", "true", patience)


async def _label(api: Api, path: str, value: str | None, patience: Patience) -> None:
    body = {"metadata": {"labels": {LEADER_LABEL: value}}}
    try:
        await api.request("PATCH", path, body=body, content_type=MERGE_PATCH, patience=patience)
    except ApiError as error:
        if error.status != 404:
            raise
