"""Faults between the operator and the API server, after Sieve (OSDI'22): start reading at proxy.py.

async with FaultProxy.between(plane, Refuse(lambda asked: asked.plural == "jobs", 503)) as proxy:
    ... an operator with KUBECONFIG=proxy.kubeconfig ...
"""
