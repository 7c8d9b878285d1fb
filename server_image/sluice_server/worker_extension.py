"""What Sluice adds to vLLM's workers (its flag --worker-extension-cls): one question about a loaded adapter."""

from typing import Any


class WorkerExtension:
    """Mixed into vLLM's Worker, which has a model_runner."""

    model_runner: Any

    def sluice_adapter_layers(self, lora_id: int) -> tuple[int, list[str]]:
        """How many layers an adapter has on this worker, and which of them no layer of its model uses.

        vLLM looks each of its own layers up in the adapter and says nothing of what it finds nowhere
        (vllm/lora/model_manager.py, activate_adapter); so does this, the other way round.
        """
        manager = self.model_runner.lora_manager._adapter_manager
        adapter = manager.get_adapter(lora_id)
        used = {id(manager._get_lora_layer_weights(adapter, name)) for name in manager.modules}
        return len(adapter.loras), sorted(name for name, weights in adapter.loras.items() if id(weights) not in used)
