"""What Sluice adds to vLLM's workers (flag --worker-extension-cls): a method that inspects a loaded adapter."""

from typing import Any


class WorkerExtension:
    """Mixed into vLLM's Worker, which has a model_runner."""

    model_runner: Any

    def sluice_adapter_layers(self, lora_id: int) -> tuple[int, list[str]]:
        """The number of an adapter's layers on this worker, and those that no layer of the model uses.

        vLLM looks up each of the model's layers in the adapter, and ignores the adapter's other layers
        (vllm/lora/model_manager.py, activate_adapter). This method looks them up the same way.
        """
        manager = self.model_runner.lora_manager._adapter_manager
        adapter = manager.get_adapter(lora_id)
        used = {id(manager._get_lora_layer_weights(adapter, name)) for name in manager.modules}
        return len(adapter.loras), sorted(name for name, weights in adapter.loras.items() if id(weights) not in used)
