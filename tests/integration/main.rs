//! Behaviour over HTTP: the built binary on a free port, spoken to as clients speak to it.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod answers;
mod connections;
mod lifecycle;
mod observability;
mod overload;
mod refusals;
mod rolling;
mod sdks;
mod server;
mod spellings;
mod tls;
