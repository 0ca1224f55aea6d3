//! The bytes of a request's media, before anything is decoded. In: an [`EmbedInput`]. Out: a [`LoadedInput`], or which part is at fault.
//!
//! What a URL or a file gives is held within the same memory as decoded pixels: a request of a few kilobytes may name thousands of large ones.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio::sync::Semaphore;

use super::ingest::Loaded;
use super::{EmbedInput, Embedder, InputPart, PartContent, ServiceError};
use crate::batcher::Held;
use crate::media::{LoadedMedia, MediaError, MediaSource, Origin};
use crate::model::Tenant;
use crate::processor::PromptPart;
use crate::telemetry;

/// Media of one request that are loaded at the same time.
pub(super) const LOADS_AT_A_TIME: usize = 8;

/// An input whose bytes are here.
pub(super) struct LoadedInput {
    pub(super) input: EmbedInput,
    /// Its parts, in order.
    pub(super) parts: Vec<Loaded>,
    /// The memory of what was not in the request itself.
    pub(super) held: Vec<Held>,
}

/// The loading of one request.
pub(super) struct Loading<'a> {
    embedder: &'a Embedder,
    tenant: Tenant,
    places: Semaphore,
    /// Bytes held for this request so far.
    bytes: AtomicUsize,
}

impl<'a> Loading<'a> {
    pub(super) fn new(embedder: &'a Embedder, tenant: Tenant) -> Self {
        Self {
            embedder,
            tenant,
            places: Semaphore::new(LOADS_AT_A_TIME),
            bytes: AtomicUsize::new(0),
        }
    }

    /// Loads what an input names, a few media at the same time.
    pub(super) async fn load(&self, input: EmbedInput) -> Result<LoadedInput, ServiceError> {
        let (parts, held) = self.parts(&input.parts).await?;
        Ok(LoadedInput { input, parts, held })
    }

    /// Loads what parts name: the parts, in order, and the memory of what was not in the request itself.
    pub(super) async fn parts(
        &self,
        parts: &[InputPart],
    ) -> Result<(Vec<Loaded>, Vec<Held>), ServiceError> {
        let loaded = try_join_all(parts.iter().map(|part| self.part(part))).await?;
        let (mut parts, mut held) = (Vec::with_capacity(loaded.len()), Vec::new());
        for (part, holds) in loaded {
            parts.push(part);
            held.extend(holds);
        }
        Ok((parts, held))
    }

    async fn part(&self, part: &InputPart) -> Result<(Loaded, Vec<Held>), ServiceError> {
        Ok(match &part.content {
            PartContent::Text(text) => (Loaded::Ready(PromptPart::Text(text.clone())), Vec::new()),
            PartContent::TokenIds(ids) => {
                (Loaded::Ready(PromptPart::TokenIds(ids.clone())), Vec::new())
            }
            PartContent::Image(source, options) => {
                let (bytes, held) = self.source(source, &part.at).await?;
                (Loaded::Image(bytes, *options), vec![held])
            }
            PartContent::VideoFile(source, options) => {
                let (bytes, held) = self.source(source, &part.at).await?;
                (Loaded::VideoFile(bytes, *options), vec![held])
            }
            PartContent::Frames(sources, fps, options) => {
                // Frames that will not be shown are not fetched either.
                let kept = self.embedder.processor.sample_list(sources.len(), options);
                let frames = kept.into_iter().map(async |i| {
                    let at = format!("{}[{i}]", part.at);
                    let (bytes, held) = self.source(&sources[i], &at).await?;
                    Ok(((i, bytes), held))
                });
                let (frames, held) = try_join_all(frames).await?.into_iter().unzip();
                (Loaded::Frames(frames, *fps, *options), held)
            }
        })
    }

    async fn source(&self, source: &MediaSource, at: &str) -> Result<(Bytes, Held), ServiceError> {
        let _place = self.places.acquire().await;
        let loaded = self.embedder.loader.load(source, self.tenant.0).await;
        if matches!(source, MediaSource::Url(_)) {
            telemetry::metrics().fetch(outcome(&loaded));
        }
        let loaded = loaded.map_err(|error| ServiceError::at(at, error))?;
        let bytes = match loaded.origin {
            // Within the limit of the body.
            Origin::Inline => 0,
            Origin::File | Origin::Fetched | Origin::Kept => loaded.bytes.len(),
        };
        let own = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        let held = self.embedder.batcher.hold(bytes, own);
        let held = held.map_err(|error| ServiceError::at(at, error))?;
        Ok((loaded.bytes, held))
    }
}

/// What came of a fetch, in the words of the metric.
fn outcome(loaded: &Result<LoadedMedia, MediaError>) -> &'static str {
    match loaded {
        Ok(loaded) if loaded.origin == Origin::Kept => "kept",
        Ok(_) => "fetched",
        Err(MediaError::Blocked { .. } | MediaError::AddressRefused) => "blocked",
        Err(MediaError::TooLarge { .. }) => "too_large",
        Err(_) => "failed",
    }
}
