//! The reranker's prompt: an instruction, a query and a document, judged "yes" or "no".
//!
//! In: a [`Query`], once; then each document. Out: a [`Prepared`] sequence for each, which all begin with the same tokens.
//!
//! The text up to the document is tokenised once. Where it ends, between a line break and `<Document>:`, the tokenizer's pattern always
//! splits, whatever stands before the one and after the other; so both ends tokenised apart give the ids of the whole.
//!
//! # Source
//! `src/models/qwen3_vl_reranker.py` of QwenLM/Qwen3-VL-Embedding: the system turn, the order of the parts, no stop after the instruction,
//! no space after `<Query>:` and `<Document>:`. Its tokenizer adds nothing at the end: what is pooled is the line break after `assistant`.

use std::sync::Arc;

use super::draft::Draft;
use super::template::{NO_PART, Template, media_of};
use super::{ContextLimit, Prepared, Processor, ProcessorError, PromptPart, Truncation};
use crate::model::{AnswerIds, Patches, Task};

/// What the model is told to do.
pub(crate) const JUDGE: &str = "Judge whether the Document meets the requirements based on the Query and the Instruct provided. \
    Note that the answer can only be \"yes\" or \"no\".";
/// The instruction of a query that names none.
pub(crate) const DEFAULT_JUDGEMENT: &str =
    "Given a search query, retrieve relevant candidates that answer the query.";
/// What the template says before a document.
const DOCUMENT: &str = "<Document>:";

/// The template around a query and a document, as a person reads it, with `{instruction}`, `{query}` and `{document}` where those go.
pub fn pair_template() -> String {
    format!(
        "<|im_start|>system\n{JUDGE}<|im_end|>\n<|im_start|>user\n<Instruct>: {{instruction}}<Query>:{{query}}\n{DOCUMENT}{{document}}<|im_end|>\n<|im_start|>assistant\n"
    )
}

/// What documents are judged by.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Query {
    /// What "relevant" means; `None` is the reference's default. Taken as it is.
    pub instruction: Option<String>,
    /// What is looked for, in order. Empty is the text `NULL`.
    pub parts: Vec<PromptPart>,
}

/// The part of the prompt that all documents of a query have in common.
#[derive(Clone)]
pub struct PairHead {
    draft: Draft,
    media: Vec<Arc<Patches>>,
    /// The ids of [`DOCUMENT`] where nothing follows that merges with it.
    opening: Vec<u32>,
}

impl std::fmt::Debug for PairHead {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PairHead")
            .field("tokens", &self.draft.ids.len())
            .field("media", &self.media.len())
            .finish_non_exhaustive()
    }
}

impl PairHead {
    /// How many tokens all of its documents begin with, at least.
    pub fn tokens(&self) -> usize {
        self.draft.ids.len()
    }

    /// The query's media, in order.
    pub fn media(&self) -> &[Arc<Patches>] {
        &self.media
    }

    /// Memory of the pixels of its media.
    pub fn pixel_bytes(&self) -> usize {
        self.media.iter().map(|media| media.pixels.len()).sum()
    }
}

/// How much of a document counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DocumentLimit {
    /// Of the whole prompt. Only the document's text is ever cut.
    pub context: ContextLimit,
    /// Most tokens of a document's text; what is beyond is cut at its end.
    pub max_document_tokens: Option<usize>,
}

impl DocumentLimit {
    /// How texts are taken in: cut as the document is where that has a limit of its own, which it may meet although they, before they
    /// are cut, are too long for the whole prompt.
    pub(super) fn cutting(self) -> ContextLimit {
        match self.max_document_tokens {
            Some(max_tokens) => ContextLimit {
                max_tokens,
                truncation: Truncation::End,
            },
            None => self.context,
        }
    }
}

impl Processor {
    /// The ids of "yes" and "no".
    ///
    /// # Errors
    /// [`ProcessorError::Tokenizer`] when the vocabulary lacks one.
    pub fn answer_ids(&self) -> Result<AnswerIds, ProcessorError> {
        let tokenizer = &self.template.tokenizer;
        Ok(AnswerIds {
            yes: tokenizer.id_of("yes")?,
            no: tokenizer.id_of("no")?,
        })
    }

    /// Renders and tokenises the prompt up to the document.
    ///
    /// # Errors
    /// [`ProcessorError::TooLong`] when it alone has more than `max_tokens`.
    pub fn pair_head(&self, query: &Query, max_tokens: usize) -> Result<PairHead, ProcessorError> {
        self.template.pair_head(query, max_tokens)
    }

    /// The prompt of one document.
    ///
    /// # Errors
    /// [`ProcessorError::TooLong`].
    pub fn pair(
        &self,
        head: &PairHead,
        document: &[PromptPart],
        limit: DocumentLimit,
    ) -> Result<Prepared, ProcessorError> {
        self.template.pair(head, document, limit)
    }
}

impl Template {
    fn pair_head(&self, query: &Query, max_tokens: usize) -> Result<PairHead, ProcessorError> {
        // What documents are judged by is never cut: they would be judged by something else.
        let limit = ContextLimit {
            max_tokens,
            truncation: Truncation::None,
        };
        let mut draft = Draft::default();
        let ids = self.tokenizer.ids();
        self.special(&mut draft, ids.im_start, limit)?;
        draft.text.push_str("system\n");
        draft.text.push_str(JUDGE);
        self.special(&mut draft, ids.im_end, limit)?;
        draft.text.push('\n');
        self.special(&mut draft, ids.im_start, limit)?;
        let instruction = query.instruction.as_deref().filter(|text| !text.is_empty());
        let instruction = instruction.unwrap_or(DEFAULT_JUDGEMENT);
        draft
            .text
            .push_str(&format!("user\n<Instruct>: {instruction}<Query>:"));
        self.pair_side(&mut draft, &query.parts, limit)?;
        draft.text.push('\n');
        self.flush(&mut draft, limit)?;
        draft.fixed = Some(draft.ids.len());
        if draft.ids.len() > max_tokens {
            return Err(ProcessorError::TooLong {
                tokens: draft.ids.len(),
                at_least: true,
                media_tokens: draft.tokens.image_tokens + draft.tokens.video_tokens,
                limit: max_tokens,
            });
        }
        draft.cuttable.fill(false);
        Ok(PairHead {
            draft,
            media: media_of(&query.parts),
            opening: self.tokenizer.encode(DOCUMENT)?.ids,
        })
    }

    fn pair(
        &self,
        head: &PairHead,
        document: &[PromptPart],
        limit: DocumentLimit,
    ) -> Result<Prepared, ProcessorError> {
        let mut draft = head.draft.clone();
        let ids = self.tokenizer.ids();
        let cutting = limit.cutting();
        draft.text.push_str(DOCUMENT);
        self.pair_side(&mut draft, document, cutting)?;
        self.special(&mut draft, ids.im_end, cutting)?;
        draft.text.push('\n');
        self.special(&mut draft, ids.im_start, cutting)?;
        draft.text.push_str("assistant\n");
        self.flush(&mut draft, cutting)?;
        let mut truncated = draft.clipped;
        truncated |= draft.truncate_document(limit.max_document_tokens)?;
        truncated |= draft.truncate(0, limit.context)?;
        let prefix = Self::prefix_tokens(&draft, &head.opening);
        let mut media = head.media.clone();
        media.extend(media_of(document));
        let mut prepared = self.position(draft, media, prefix)?;
        prepared.sequence.task = Task::Rerank;
        prepared.truncated = truncated;
        Ok(prepared)
    }

    /// The parts of a query or a document.
    fn pair_side(
        &self,
        draft: &mut Draft,
        parts: &[PromptPart],
        limit: ContextLimit,
    ) -> Result<(), ProcessorError> {
        if parts.is_empty() {
            draft.text.push_str(NO_PART);
        }
        parts
            .iter()
            .try_for_each(|part| self.part(draft, part, limit))
    }
}

#[cfg(test)]
mod tests;
