"""What is shown of a decision: statuses, conditions, and a decision spelled out. Nothing here is decided."""
