"""What `experiments.benchmarks.gpu_hour` measures, part by part, each in a process of its own."""
