"""A Ray cluster on this machine: a head, and workers that come and go, with a folder, ports and a token of its own.

`layout` says what a cluster is, `start` brings it up, `processes` finds what belongs to it. No Ray is imported: all of it runs in
processes of its own.
"""
