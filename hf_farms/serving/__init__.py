"""Adapters in inference engines: the changes of weights as flat patches, and the extensions that apply them.

flat_patches.py   adapters as flat positions and values; the difference of two of them
served_base.py    the checkpoint of an engine as the base of an adapter
vllm.py           the worker extension of vLLM
"""
