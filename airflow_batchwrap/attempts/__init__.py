"""One piece of Batch work, submitted once: what the operators share, and what no operator is."""
