"""`make chaos`: a whole system at work while everything around it dies, fills up, hangs or lies, and then the count.

In go servers and work of all kinds with known results; out comes whether every job ended, and rightly.
"""
