"""The report of Prepare, as files and on a terminal. Begin at page.py; what it says is sluice_api.data_report."""
