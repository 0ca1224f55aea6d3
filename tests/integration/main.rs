//! Behaviour over HTTP: the built binary on a free port, spoken to as clients speak to it.

mod answers;
mod lifecycle;
mod refusals;
mod sdks;
mod server;
mod spellings;
