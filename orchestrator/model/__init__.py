"""The Transformer, in pure PyTorch.

Shapes are in the names: B batch, T tokens of this call, S tokens attended to, D model width,
H heads, K head width, F feed-forward width, V vocabulary.
"""
