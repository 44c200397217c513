"""A Ray cluster on this machine: a head, and workers that come and go, with a folder, ports and a token of its own.

`layout` says what a cluster is, `start` brings it up, `processes` finds what belongs to it. None of them imports Ray, which runs in
processes of its own; `provider` is a part of those.
"""
