//! `manifold`: an OpenAI-compatible embedding server for Qwen3-VL-Embedding.
//!
//! # The map
//!
//! Rooms stand in one ordered list, and a room imports only rooms further down (`tests/tidy.rs` enforces it):
//!
//! | room | what it answers |
//! |---|---|
//! | [`cli`] | what each subcommand does |
//! | [`config`] | what the operator asked for: flags, environment and file become one [`config::Config`] |
//! | [`api`] | what the wire looks like: the only room that knows HTTP and status codes |
//! | [`service`] | the life of a request, stage by stage: the only place that knows every stage |
//! | [`batcher`] | which requests share a forward pass, which come first, which are turned away |
//! | [`engine`] | which device, which weights; the one thread that touches them |
//! | [`processor`] | how parts become a [`model::Sequence`]: prompt, tokens, patches, positions |
//! | [`model`] | Qwen3-VL: vision tower, language model, pooling, the head that scores |
//! | [`kernels`] | the few heavy operations the model is made of |
//! | [`media`] | where foreign bytes come from and how they become pixels |
//! | [`vectors`] | truncate, normalise, quantise, encode |
//! | [`telemetry`] | logs, metrics, traces |
//!
//! # The life of a request
//!
//! `api` parses the wire into [`service::EmbedRequest`]; [`service::Embedder`] fetches and decodes its media (`media`), turns
//! each input into a [`model::Sequence`] (`processor`), hands it to [`batcher::Batcher`], which lets it in or not and packs what waits
//! into a [`model::PackedBatch`] for the [`engine`] thread when that is free; the pooled rows come back and leave through `vectors`.
//! A [`service::RankRequest`] goes the same way through [`service::Reranker`], each pair a sequence for the other model of the same
//! thread, and what comes back is a logit.
//!
//! # Invariants
//!
//! - only [`api`] knows status codes; only `main` and [`cli`] read [`config::Config`], each room declares its own settings;
//! - tensors exist only in [`engine`], [`model`] and [`kernels`]; elsewhere data is a plain `Vec` with a shape;
//! - only the engine thread touches the device: everyone else sends a [`model::PackedBatch`] and gets rows back;
//! - everything that can be refused is refused before the batcher: no bad request costs a forward pass;
//! - nothing kept of one key's requests (keys and values, work in flight) serves another's: how long an answer takes would tell;
//! - no blocking or CPU-heavy work on the async threads.

pub mod api;
pub mod batcher;
pub mod cli;
pub mod config;
pub mod engine;
pub mod kernels;
pub mod media;
pub mod model;
pub mod processor;
pub mod service;
pub mod telemetry;
pub mod vectors;

#[doc = include_str!("recipes.md")]
pub mod recipes {}
