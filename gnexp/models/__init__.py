"""CIFAR ResNets, models of libraries and users, their initialization and stored weights.

It may import norms. A model gets its norm as a callable and never knows which one it is.
"""
