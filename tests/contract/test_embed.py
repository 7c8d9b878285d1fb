"""A real embedding model in real vLLM, as an engine of task Embed has it."""

import numpy as np
import openai
import pytest

from sluice_api.inferenceengine import InferenceEngineSpec, ServedModel, Serving
from sluice_server.agent.vllm_client import VLLMClient
from sluice_server.paths import SECRET_HEADER
from tests.contract.models import embedding, place_minilm
from tests.contract.test_vllm import SECRET, new_paths, started
from tests.unit.server.fake_vllm import BASE

pytestmark = pytest.mark.timeout(300)

SPEC = InferenceEngineSpec(
    model=ServedModel(uri="pvc://models/minilm"),
    task="Embed",
    serving=Serving(dtype="float32", max_concurrent_requests=4),
)
TEXTS = ["A cat sits on the mat.", "A kitten rests on a rug.", "The central bank raised interest rates."]


async def test_embedding_model_answers_with_its_own_numbers(tmp_path_factory: pytest.TempPathFactory) -> None:
    paths = new_paths(tmp_path_factory.mktemp("embed"))  # vLLM makes a socket there, whose path has an end
    model = place_minilm(paths.root / "volumes")
    with started(paths, "-m", "sluice_server", "vllm", spec=SPEC) as server:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        answers = client.embeddings.create(model=BASE, input=TEXTS, encoding_format="float").data
        async with VLLMClient(paths.serve_port, SECRET[SECRET_HEADER], BASE, embeds=True) as vllm:
            await vllm.check_answers(BASE)
    cat, kitten, bank = (np.array(answer.embedding) for answer in answers)
    assert cat == pytest.approx(np.array(embedding(model, TEXTS[0])), abs=1e-3)
    assert cat @ kitten > 0.4 > cat @ bank
