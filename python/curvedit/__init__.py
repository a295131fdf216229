"""Edit trained networks by the curvature of their loss."""
