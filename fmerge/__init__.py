"""fmerge: merge fine-tuned transformers, and prove what the merge kept."""

__version__ = "0.1.0"
