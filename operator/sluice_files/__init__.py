"""Bytes at addresses outside the cluster: object stores and the hub. Trainer and server read and write by it.

Begin with objects.py (s3://, gs://, az://) and hub.py (hf://). Whatever goes wrong is a FileError that says what to do.
"""
