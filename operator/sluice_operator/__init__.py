"""The control plane: moves GPUs between engines that serve and jobs that train. Start at reconcile/."""
