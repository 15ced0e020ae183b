"""Inference in batches, made of single items: the scheduler, the engine process, and what is loaded in it.

Imports no torch: engines, which do, are named by strings and imported in the engine process.
"""
