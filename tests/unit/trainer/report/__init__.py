"""The report of Prepare."""
