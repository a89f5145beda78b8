"""A recipe's training as something that a machine, Slurm or Kubernetes can start: rendered as text, then submitted."""
