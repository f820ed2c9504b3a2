"""The same step on several devices: rendezvous, control messages, the processes of one run.

It imports what `gnexp.training` may import. Only rank 0 has images and files.
"""
