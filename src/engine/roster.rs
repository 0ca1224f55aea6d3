//! The models of one engine: an embedder, a reranker, or both on the same device.
//!
//! In: their checkpoints. Out: for a [`Task`] the encoder that computes it, and what is made of its pooled rows.

use super::{Checkpoint, EngineError, EngineInfo};
use crate::kernels::Kernels;
use crate::model::{AnswerIds, PackedBatch, Qwen3VlEncoder, ScoreHead, Task};

/// Which checkpoints an engine computes; at least one.
#[derive(Debug, Clone, Copy, Default)]
pub struct Models<'a> {
    /// What embeds.
    pub embedder: Option<&'a Checkpoint>,
    /// What scores documents, and the ids of its answers.
    pub reranker: Option<(&'a Checkpoint, AnswerIds)>,
}

/// Where and how they run.
pub(super) struct Place {
    pub(super) kernels: Kernels,
    pub(super) device: String,
    pub(super) dtype: &'static str,
    pub(super) threads: usize,
}

/// A model in place.
#[derive(Debug)]
struct Member {
    encoder: Qwen3VlEncoder,
    head: Option<ScoreHead>,
}

/// The models in place, by [`Task`].
#[derive(Debug)]
pub(super) struct Roster([Option<Member>; 2]);

impl Roster {
    /// Loads all of them, and says of each what runs where.
    pub(super) fn load(
        models: Models<'_>,
        place: &Place,
    ) -> Result<(Self, [Option<EngineInfo>; 2]), EngineError> {
        let mut members = [None, None];
        let mut infos = [None, None];
        let reranker = models.reranker;
        let wanted = [
            (Task::Embed, models.embedder, None),
            (
                Task::Rerank,
                reranker.map(|(checkpoint, _)| checkpoint),
                reranker.map(|(_, answers)| answers),
            ),
        ];
        for (task, checkpoint, answers) in wanted {
            let Some(checkpoint) = checkpoint else {
                continue;
            };
            let (member, info) = Member::load(checkpoint, answers, place)?;
            members[task as usize] = Some(member);
            infos[task as usize] = Some(info);
        }
        Ok((Roster(members), infos))
    }

    /// The encoder that computes a batch.
    pub(super) fn encoder(&self, batch: &PackedBatch) -> Result<&Qwen3VlEncoder, EngineError> {
        match &self.0[batch.task as usize] {
            Some(member) => Ok(&member.encoder),
            None => Err(EngineError::Forward {
                reason: format!("no model for {:?} is loaded", batch.task),
            }),
        }
    }

    /// What a client is told of a pooled row: the row itself, or the one number the head makes of it.
    pub(super) fn finish(&self, task: Task, row: Vec<f32>) -> Vec<f32> {
        let member = self.0[task as usize].as_ref();
        match member.and_then(|member| member.head.as_ref()) {
            Some(head) => vec![head.logit(&row)],
            None => row,
        }
    }
}

impl Member {
    fn load(
        checkpoint: &Checkpoint,
        answers: Option<AnswerIds>,
        place: &Place,
    ) -> Result<(Self, EngineInfo), EngineError> {
        let (config, weights) = (checkpoint.model_config()?, &checkpoint.weights);
        let rounded = place.dtype != "f32";
        let head = answers
            .map(|ids| ScoreHead::load(&config, weights, ids, rounded))
            .transpose()?;
        let encoder = Qwen3VlEncoder::load(&config, weights, place.kernels.clone())?;
        let unused = weights
            .get("lm_head.weight")
            .map_or(0, |tensor| tensor.elements());
        let all: usize = weights.values().map(|tensor| tensor.elements()).sum();
        let info = EngineInfo {
            device: place.device.clone(),
            dtype: place.dtype,
            kernels: format!("{:?}", place.kernels),
            threads: place.threads,
            hidden_size: config.text.hidden_size,
            max_position_embeddings: config.text.max_position_embeddings,
            parameters: (all - unused) as u64,
            reuses_prefixes: encoder.can_reuse(),
        };
        Ok((Member { encoder, head }, info))
    }
}
