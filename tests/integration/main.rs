//! Behaviour over HTTP: the built binary on a free port, spoken to as clients speak to it.
#![expect(
    clippy::unwrap_used,
    reason = "a test that cannot go on should stop where it is"
)]

mod animations;
mod answers;
#[cfg(target_os = "linux")]
mod bombs;
mod clients;
mod clips;
mod connections;
mod corpora;
#[cfg(target_os = "linux")]
mod escapes;
mod explain;
#[cfg(target_os = "linux")]
mod fetching;
mod forms;
mod fuzzing;
mod incidents;
mod leaving;
mod lifecycle;
mod meaning;
mod observability;
mod openapi;
mod overload;
mod peers;
mod playground;
#[cfg(target_os = "linux")]
mod playlists;
mod recipes;
mod refusals;
mod reranking;
mod rolling;
mod sdks;
mod server;
mod spellings;
mod surroundings;
mod tls;
