"""What all images agree on: custom resources, reports, stages. Pydantic only; imports nothing of ours."""
