"""``signconv bench``: time, traffic and memory of a step, beside a copy and beside other libraries.

``subjects`` (what the user names), ``workloads`` (lists of shapes) and ``peers`` (other libraries)
say what is measured; ``timing``, ``limits`` and ``measure`` do it; ``run`` is the whole run and its
JSON; ``table``, ``chart`` and ``page`` show that JSON and measure nothing.
"""
