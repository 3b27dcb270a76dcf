"""MLX: the graph file of ours, its vocabulary, and the interpreter that runs it on a device (mlx and numpy, nothing else)."""
