"""Many experiments: config, coordinator, executors, durable state, tracking, command line."""
