"""The machine below Lightning: signals, SLURM, lost processes, memory."""
