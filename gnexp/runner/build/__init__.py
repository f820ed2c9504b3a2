"""Objects from a config: images, network, initial weights, training step.

It imports what `gnexp.runner` may import. It is the only place that turns config into objects.
"""
