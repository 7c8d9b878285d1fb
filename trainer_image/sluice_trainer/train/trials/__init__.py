"""What is tried on the model itself before step 0: are packs exact, is the fused loss the same, how much fits."""
