"""What `helm test` runs in the operator's image.

Does the API server know Sluice, and guard what is Sluice's; and does the leader answer?
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TRUST = Path("/trust/ca.crt")
KINDS = {"Adapter", "FineTuneJob", "GPUPool", "InferenceEngine"}
PATIENCE_SECONDS = 60
FORGED = {
    "apiVersion": "v1",
    "kind": "PodTemplate",
    "metadata": {"name": "sluice-test"},
    "template": {
        "metadata": {"labels": {"sluice.dev/test": "forged"}},
        "spec": {"containers": [{"name": "none", "image": "none"}]},
    },
}
"""What only Sluice may make, in an object that runs nothing. It is not even stored: the request is a dry run."""


def asked(method: str, path: str, body: object = None) -> tuple[int, str]:
    """The API server's answer to this pod's account: its status and its text."""
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"]
    request = urllib.request.Request(
        f"https://{f'[{host}]' if ':' in host else host}:{port}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=ACCOUNT / "ca.crt")) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as refused:
        return refused.code, refused.read().decode()


def missing_kinds() -> str:
    """Which of Sluice's kinds the API server does not serve; empty if none is missing."""
    status, text = asked("GET", "/apis/sluice.dev/v1alpha1")
    served = {resource["kind"] for resource in json.loads(text)["resources"]} if status == 200 else set()
    lacking = ", ".join(sorted(KINDS - served))
    return f"the API server does not know {lacking}: install the chart with crds.install=true" if lacking else ""


def unguarded(policy: str) -> str:
    """What is wrong with the admission policy of that name; empty if it refuses what is forged."""
    namespace = (ACCOUNT / "namespace").read_text()
    status, text = asked("POST", f"/api/v1/namespaces/{namespace}/podtemplates?dryRun=All", FORGED)
    if status == 403 and f"ValidatingAdmissionPolicy '{policy}'" in text:
        return ""
    if status == 403:
        return f"the admission policy could not be tried: {text}"
    return (
        f"the admission policy {policy} is missing or does nothing: an object with a label under sluice.dev/ was"
        f" answered with {status}. `kubectl get validatingadmissionpolicy,validatingadmissionpolicybinding {policy}`;"
        " does admissionPolicy.exempt have this pod's account? docs/threat-model.md says what a user with the role edit"
        " can do to other teams without the policy; admissionPolicy.create=false switches it and this check off."
    )


def answer_without_token() -> int:
    """The status that the progress Service gives to a report of nobody: 401 from a leader."""
    url = os.environ["SLUICE_REPORT_URL"] + "/v1/training-reports"
    trust = ssl.create_default_context(cafile=TRUST if TRUST.exists() else None)
    post = urllib.request.Request(url, data=b"{}", method="POST")
    try:
        with urllib.request.urlopen(post, timeout=5, context=trust) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code
    except OSError as failed:
        print(f"the progress Service does not answer: {failed}", flush=True)
        return 0


def main() -> str:
    """Check one after the other; what is wrong first, empty if all is well."""
    if wrong := missing_kinds():
        return wrong
    print("the API server serves " + ", ".join(sorted(KINDS)), flush=True)
    policy = os.environ["SLUICE_ADMISSION_POLICY"]
    if policy and (wrong := unguarded(policy)):
        return wrong
    print(
        f"the admission policy {policy} works" if policy else "admissionPolicy.create=false: there is no policy to try"
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (status := answer_without_token()) != 401:
        if time.monotonic() > deadline:
            return f"a report without a token was answered with {status}, not 401: see the operator's logs"
        time.sleep(2)
    print("the leader answers, and takes reports from nobody without a token")
    return ""


if __name__ == "__main__":
    sys.exit(main() or None)
