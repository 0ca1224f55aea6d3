//! The prompt: template, user text, media spans and timestamps become ids, positions and vision rows.
//!
//! The reference renders one string and tokenises it; special tokens split it first, so what stands between two of them is
//! tokenised on its own. Here those stretches are tokenised directly, with special tokens off, and the special tokens are put in as
//! ids: the same ids, and nothing a user writes can become a token of the template.

use tokenizers::{Encoding, PostProcessor, Tokenizer};

use super::draft::{Draft, Span};
use super::instruction::instruction;
use super::positions::Positions;
use super::{
    ContextLimit, Prepared, ProcessorError, Prompt, PromptPart, Truncation, VideoPatches,
    VisionTokenIds,
};
use crate::model::{GridThw, Sequence};

/// What the reference embeds for an input without any part.
const NO_PART: &str = "NULL";
/// Unicode composition (NFC) makes a text at most this much shorter in bytes: three conjoining jamo of three bytes each become one
/// syllable of three, and a letter with several marks less than four times.
const MAX_COMPOSITION: usize = 4;

/// A tokenizer and the ids of the template's own tokens.
#[derive(Debug)]
pub(super) struct Template {
    tokenizer: Tokenizer,
    vision: VisionTokenIds,
    im_start: u32,
    im_end: u32,
    /// Ids of all special tokens, ascending.
    special: Vec<u32>,
    /// Ids the model has.
    vocabulary: u32,
    /// Bytes of the longest token.
    longest_token: usize,
}

impl Template {
    pub(super) fn new(
        tokenizer_json: &[u8],
        vision: VisionTokenIds,
    ) -> Result<Self, ProcessorError> {
        let refuse = |reason: String| ProcessorError::Tokenizer { reason };
        let mut tokenizer =
            Tokenizer::from_bytes(tokenizer_json).map_err(|error| refuse(error.to_string()))?;
        tokenizer.set_encode_special_tokens(true);
        tokenizer.with_padding(None);
        tokenizer
            .with_truncation(None)
            .map_err(|error| refuse(error.to_string()))?;
        for (field, id, content) in [
            ("image_token_id", vision.image_token_id, "<|image_pad|>"),
            ("video_token_id", vision.video_token_id, "<|video_pad|>"),
            (
                "vision_start_token_id",
                vision.vision_start_token_id,
                "<|vision_start|>",
            ),
            (
                "vision_end_token_id",
                vision.vision_end_token_id,
                "<|vision_end|>",
            ),
        ] {
            let found = tokenizer.token_to_id(content);
            if found != Some(id) {
                return Err(refuse(format!(
                    "{content} has the id {found:?}, config.json says {field} is {id}"
                )));
            }
        }
        let find = |content: &str| {
            tokenizer
                .token_to_id(content)
                .ok_or_else(|| refuse(format!("it has no token {content}")))
        };
        let (im_start, im_end) = (find("<|im_start|>")?, find("<|im_end|>")?);
        let added = tokenizer.get_added_tokens_decoder();
        let special = added
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(&id, _)| id)
            .collect();
        let vocabulary = tokenizer.get_vocab(true);
        let longest_token = vocabulary
            .keys()
            .map(|token| token.chars().count())
            .max()
            .unwrap_or(1);
        let vocabulary = vocabulary.values().max().map_or(0, |id| id + 1);
        if vocabulary as usize > vision.vocab_size {
            let reason = format!(
                "it has {vocabulary} ids, config.json says vocab_size is {}",
                vision.vocab_size
            );
            return Err(refuse(reason));
        }
        Ok(Template {
            tokenizer,
            vision,
            im_start,
            im_end,
            special,
            vocabulary,
            longest_token,
        })
    }

    pub(super) fn prepare(
        &self,
        prompt: &Prompt,
        limit: ContextLimit,
    ) -> Result<Prepared, ProcessorError> {
        let mut draft = Draft::default();
        if !prompt.raw {
            self.special(&mut draft, self.im_start)?;
            draft.text.push_str("system\n");
            draft
                .text
                .push_str(&instruction(prompt.instruction.as_deref()));
            self.special(&mut draft, self.im_end)?;
            draft.text.push('\n');
            self.special(&mut draft, self.im_start)?;
            draft.text.push_str("user\n");
        }
        if prompt.parts.is_empty() {
            draft.text.push_str(NO_PART);
        }
        for part in &prompt.parts {
            self.part(&mut draft, part, limit)?;
        }
        if !prompt.raw {
            self.special(&mut draft, self.im_end)?;
            draft.text.push('\n');
            self.special(&mut draft, self.im_start)?;
            draft.text.push_str("assistant\n");
        }
        self.flush(&mut draft)?;
        let truncated = self.truncate(&mut draft, limit)?;
        let media = prompt.parts.iter().filter_map(|part| match part {
            PromptPart::Image(patches) => Some(patches.clone()),
            PromptPart::Video(video) => Some(video.patches.clone()),
            PromptPart::Text(_) | PromptPart::TokenIds(_) => None,
        });
        let (ids, spans) = self.post_process(draft.ids, draft.spans)?;
        let vision_rows: Vec<u32> = spans
            .iter()
            .flat_map(|(start, grid)| *start as u32..(*start + grid.vision_tokens()) as u32)
            .collect();
        let mut tokens = draft.tokens;
        tokens.text_tokens = ids.len() - vision_rows.len();
        let position_ids = Positions::of(ids.len(), &spans).axes;
        let sequence = Sequence {
            input_ids: ids,
            position_ids,
            media: media.collect(),
            vision_rows,
        };
        Ok(Prepared {
            sequence,
            tokens,
            truncated,
        })
    }

    fn part(
        &self,
        draft: &mut Draft,
        part: &PromptPart,
        limit: ContextLimit,
    ) -> Result<(), ProcessorError> {
        match part {
            PromptPart::Text(text) => {
                let text = self.bounded(text, limit)?;
                let start = draft.text.len();
                draft.text.push_str(text);
                draft.user.push(start..draft.text.len());
                Ok(())
            }
            PromptPart::TokenIds(ids) => {
                self.flush(draft)?;
                for (position, &id) in ids.iter().enumerate() {
                    self.check_id(position, id)?;
                    draft.push(id, true);
                }
                Ok(())
            }
            PromptPart::Image(patches) => {
                draft.tokens.image_tokens += patches.grid.vision_tokens();
                self.span(draft, patches.grid, self.vision.image_token_id)
            }
            PromptPart::Video(video) => self.video(draft, video),
        }
    }

    /// A video is a span for every frame pair, each after its time; no pair of vision tokens stands around the whole.
    fn video(&self, draft: &mut Draft, video: &VideoPatches) -> Result<(), ProcessorError> {
        let grid = video.patches.grid;
        draft.tokens.video_tokens += grid.vision_tokens();
        for time in &video.timestamps {
            draft.text.push_str(&format!("<{time:.1} seconds>"));
            self.span(draft, GridThw { t: 1, ..grid }, self.vision.video_token_id)?;
        }
        Ok(())
    }

    fn span(&self, draft: &mut Draft, grid: GridThw, pad: u32) -> Result<(), ProcessorError> {
        self.special(draft, self.vision.vision_start_token_id)?;
        draft.spans.push((draft.ids.len(), grid));
        for _ in 0..grid.vision_tokens() {
            draft.push(pad, false);
        }
        self.special(draft, self.vision.vision_end_token_id)
    }

    fn special(&self, draft: &mut Draft, id: u32) -> Result<(), ProcessorError> {
        self.flush(draft)?;
        draft.push(id, false);
        Ok(())
    }

    /// Tokenises the text gathered since the last special token.
    fn flush(&self, draft: &mut Draft) -> Result<(), ProcessorError> {
        let (text, user) = (
            std::mem::take(&mut draft.text),
            std::mem::take(&mut draft.user),
        );
        if text.is_empty() {
            return Ok(());
        }
        let encoding =
            self.tokenizer
                .encode(text, false)
                .map_err(|error| ProcessorError::Tokenizer {
                    reason: error.to_string(),
                })?;
        for (&id, &(start, end)) in encoding.get_ids().iter().zip(encoding.get_offsets()) {
            let inside = user
                .iter()
                .any(|range| range.start <= start && end <= range.end);
            draft.push(id, inside);
        }
        Ok(())
    }

    /// The text, or the end of it that can matter when it is certain to be cut.
    ///
    /// A token has at most `longest_token` bytes, so a text of so many bytes has more tokens than the limit: refusing or shortening
    /// it before tokenising keeps a text of megabytes from costing seconds.
    fn bounded<'a>(&self, text: &'a str, limit: ContextLimit) -> Result<&'a str, ProcessorError> {
        let most = limit
            .max_tokens
            .saturating_mul(self.longest_token * MAX_COMPOSITION);
        if text.len() <= most {
            return Ok(text);
        }
        match limit.truncation {
            Truncation::None => {
                let tokens = text.len() / (self.longest_token * MAX_COMPOSITION);
                Err(ProcessorError::TooLong {
                    tokens,
                    media_tokens: 0,
                    limit: limit.max_tokens,
                })
            }
            Truncation::End | Truncation::Reference => Ok(&text[..text.floor_char_boundary(most)]),
            Truncation::Start => Ok(&text[text.ceil_char_boundary(text.len() - most)..]),
        }
    }

    fn check_id(&self, position: usize, id: u32) -> Result<(), ProcessorError> {
        let reason = if id >= self.vocabulary {
            format!("is not below the vocabulary size {}", self.vocabulary)
        } else if self.special.contains(&id) {
            "is a special token".to_owned()
        } else {
            return Ok(());
        };
        Err(ProcessorError::TokenId {
            position,
            id,
            reason,
        })
    }

    /// Cuts what is too much. Whether anything was cut.
    fn truncate(&self, draft: &mut Draft, limit: ContextLimit) -> Result<bool, ProcessorError> {
        let added = self
            .tokenizer
            .get_post_processor()
            .map_or(0, |processor| processor.added_tokens(false));
        let tokens = draft.ids.len() + added;
        if tokens <= limit.max_tokens {
            return Ok(false);
        }
        let excess = tokens - limit.max_tokens;
        let media_tokens = draft.tokens.image_tokens + draft.tokens.video_tokens;
        let too_long = ProcessorError::TooLong {
            tokens,
            media_tokens,
            limit: limit.max_tokens,
        };
        match limit.truncation {
            Truncation::None => Err(too_long),
            Truncation::Reference => {
                let keep = draft.ids.len().saturating_sub(excess);
                if keep == 0
                    || draft
                        .spans
                        .iter()
                        .any(|(start, grid)| start + grid.vision_tokens() > keep)
                {
                    return Err(too_long);
                }
                draft.ids.truncate(keep);
                Ok(true)
            }
            Truncation::End | Truncation::Start => {
                let cuttable = draft.cuttable.iter().filter(|&&cuttable| cuttable).count();
                if cuttable < excess {
                    return Err(too_long);
                }
                let from_end = limit.truncation == Truncation::End;
                let dropped = if from_end {
                    cuttable - excess..cuttable
                } else {
                    0..excess
                };
                draft.drop_cuttable(&dropped);
                Ok(true)
            }
        }
    }

    /// Runs the tokenizer's own post-processor on the ids; spans move with whatever it puts before them.
    fn post_process(
        &self,
        ids: Vec<u32>,
        mut spans: Vec<Span>,
    ) -> Result<(Vec<u32>, Vec<Span>), ProcessorError> {
        let n = ids.len();
        let encoding = Encoding::new(
            ids.clone(),
            vec![0; n],
            vec![String::new(); n],
            vec![None; n],
            vec![(0, 0); n],
            vec![0; n],
            vec![1; n],
            Vec::new(),
            [(0, 0..n)].into_iter().collect(),
        );
        let refuse = |reason: String| ProcessorError::Tokenizer { reason };
        let processed = self
            .tokenizer
            .post_process(encoding, None, true)
            .map_err(|error| refuse(error.to_string()))?;
        let before = processed
            .get_special_tokens_mask()
            .iter()
            .take_while(|&&special| special == 1)
            .count();
        let processed = processed.get_ids().to_vec();
        if processed.get(before..before + n) != Some(&ids[..]) {
            return Err(refuse(
                "its post-processor changes the prompt's own tokens".to_owned(),
            ));
        }
        for (start, _) in &mut spans {
            *start += before;
        }
        Ok((processed, spans))
    }
}

#[cfg(test)]
mod tests;
