"""Where things run: slices of a cluster, connections to it, jobs and manifests for it."""
