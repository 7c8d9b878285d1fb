"""What is tried on the model itself before step 0: packs are exact, the lean loss is its own, and how much fits."""
