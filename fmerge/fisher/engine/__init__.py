"""The exact engine: a batched pass whose squares are taken example by example."""
