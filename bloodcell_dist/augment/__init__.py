"""Augmentation on the training device: stateless, batched layers that XLA compiles, and the policies made of them."""
