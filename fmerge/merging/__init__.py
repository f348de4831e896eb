"""From experts and coefficients to a merge: reading, checking, assembling, searching."""
