"""Known networks for point clouds as routers, one per file: MoE-DSR, Table 4."""
