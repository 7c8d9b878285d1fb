"""What `helm test` runs in the operator's image: does the API server know Sluice, and does the leader answer?"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
KINDS = {"Adapter", "FineTuneJob", "GPUPool", "InferenceEngine"}
PATIENCE_SECONDS = 60


def kinds() -> set[str]:
    """The kinds that the API server serves under sluice.dev/v1alpha1."""
    request = urllib.request.Request(
        "https://kubernetes.default.svc/apis/sluice.dev/v1alpha1",
        headers={"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"},
    )
    with urllib.request.urlopen(request, context=ssl.create_default_context(cafile=ACCOUNT / "ca.crt")) as answer:
        return {resource["kind"] for resource in json.load(answer)["resources"] if "/" not in resource["name"]}


def answer_without_token() -> int:
    """The status that the progress Service gives to a report of nobody: 401 from a leader."""
    url = os.environ["SLUICE_REPORT_URL"] + "/v1/training-reports"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=b"{}", method="POST"), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code
    except OSError as failed:
        print(f"the progress Service does not answer: {failed}", flush=True)
        return 0


missing = KINDS - kinds()
if missing:
    sys.exit(f"the API server does not know {', '.join(sorted(missing))}: install the chart with crds.install=true")
print("the API server serves " + ", ".join(sorted(KINDS)))

deadline = time.monotonic() + PATIENCE_SECONDS
while (status := answer_without_token()) != 401:
    if time.monotonic() > deadline:
        sys.exit(f"a report without a token was answered with {status}, not 401: see the operator's logs")
    time.sleep(2)
print("the leader answers, and takes reports from nobody without a token")
