"""Every text architecture of transformers, in the smallest form that can be built."""
