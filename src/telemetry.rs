//! Logs: the `tracing` subscriber the whole program writes through.
