//! The prompt: template, user text, media spans and timestamps become ids, positions and vision rows.
//!
//! The reference renders one string and tokenises it; special tokens split it first, so what stands between two of them is
//! tokenised on its own. Here those stretches are tokenised directly, with special tokens off, and the special tokens are put in as
//! ids: the same ids, and nothing a user writes can become a token of the template.

use std::sync::Arc;

use unicode_general_category::{GeneralCategory, get_general_category};

use super::draft::Draft;
use super::overflow::{Side, end_of};
use super::positions::Positions;
use super::text_tokenizer::TextTokenizer;
use super::{
    ContextLimit, DocumentLimit, Prepared, ProcessorError, Prompt, PromptPart, Truncation,
    VideoPatches, VisionTokenIds,
};
use crate::model::{GridThw, Patches, Sequence, Task};

/// Source: the default of the official embedding script.
pub(crate) const DEFAULT_INSTRUCTION: &str = "Represent the user's input.";
/// What the reference embeds for an input without any part.
pub(super) const NO_PART: &str = "NULL";
/// What the template says between its last special token before the user's parts and the first of them.
const USER_ROLE: &str = "user\n";

/// A tokenizer and the template around what it encodes.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) tokenizer: TextTokenizer,
    /// The ids of [`USER_ROLE`] where nothing follows that merges with it.
    user_role: Vec<u32>,
}

/// What a placeholder stands for.
#[derive(Clone, Copy)]
enum Modality {
    Image,
    Video,
}

impl Template {
    pub(super) fn new(
        tokenizer_json: &[u8],
        vision: VisionTokenIds,
    ) -> Result<Self, ProcessorError> {
        let tokenizer = TextTokenizer::new(tokenizer_json, vision)?;
        let user_role = tokenizer.encode(USER_ROLE)?.ids;
        Ok(Template {
            tokenizer,
            user_role,
        })
    }

    pub(super) fn prepare(
        &self,
        prompt: &Prompt,
        limit: ContextLimit,
    ) -> Result<Prepared, ProcessorError> {
        let limit = DocumentLimit {
            context: limit,
            max_document_tokens: None,
        };
        self.prepare_document(prompt, limit)
    }

    pub(super) fn prepare_document(
        &self,
        prompt: &Prompt,
        whole: DocumentLimit,
    ) -> Result<Prepared, ProcessorError> {
        let limit = whole.cutting();
        let mut draft = Draft::default();
        let ids = self.tokenizer.ids();
        if !prompt.raw {
            self.special(&mut draft, ids.im_start, limit)?;
            draft.text.push_str("system\n");
            draft
                .text
                .push_str(&instruction(prompt.instruction.as_deref()));
            self.special(&mut draft, ids.im_end, limit)?;
            draft.text.push('\n');
            self.special(&mut draft, ids.im_start, limit)?;
            draft.fixed = Some(draft.ids.len());
            draft.text.push_str(USER_ROLE);
        }
        if prompt.parts.is_empty() {
            draft.text.push_str(NO_PART);
        }
        for (number, part) in (0..).zip(&prompt.parts) {
            draft.begin(Some(number));
            self.part(&mut draft, part, limit)?;
        }
        if !prompt.raw {
            draft.begin(None);
            self.special(&mut draft, ids.im_end, limit)?;
            draft.text.push('\n');
            self.special(&mut draft, ids.im_start, limit)?;
            draft.text.push_str("assistant\n");
        }
        self.flush(&mut draft, limit)?;
        let added = self.tokenizer.added_tokens();
        let mut truncated = draft.clipped;
        truncated |= draft.truncate_document(whole.max_document_tokens)?;
        truncated |= draft.truncate(added, whole.context)?;
        self.finish(prompt, draft, truncated)
    }

    /// Post-processes, checks and positions a draft that fits.
    fn finish(
        &self,
        prompt: &Prompt,
        mut draft: Draft,
        truncated: bool,
    ) -> Result<Prepared, ProcessorError> {
        let prefix = Self::prefix_tokens(&draft, &self.user_role);
        let ids = std::mem::take(&mut draft.ids);
        let (input_ids, before) = self.tokenizer.post_process(ids);
        for (start, _) in &mut draft.spans {
            *start += before;
        }
        draft.ids = input_ids;
        let prefix = prefix.map(|prefix| before + prefix);
        let prepared = self.position(draft, media_of(&prompt.parts), prefix)?;
        Ok(Prepared {
            truncated,
            ..prepared
        })
    }

    /// Checks and positions finished ids; `prefix` of them others begin with too.
    pub(super) fn position(
        &self,
        draft: Draft,
        media: Vec<Arc<Patches>>,
        prefix: Option<usize>,
    ) -> Result<Prepared, ProcessorError> {
        let parts = draft.part_tokens();
        let Draft {
            ids: input_ids,
            spans,
            mut tokens,
            ..
        } = draft;
        if input_ids.is_empty() {
            return Err(ProcessorError::Empty);
        }
        let media_tokens = media
            .iter()
            .map(|patches| patches.grid.vision_tokens())
            .sum();
        self.tokenizer
            .check_placeholders(&input_ids, media_tokens)?;
        tokens.text_tokens = input_ids.len() - media_tokens;
        let sequence = Sequence {
            position_ids: Positions::of(input_ids.len(), &spans).axes,
            vision_rows: spans
                .iter()
                .flat_map(|(start, grid)| *start as u32..(*start + grid.vision_tokens()) as u32)
                .collect(),
            media,
            // What is pooled is always computed, also where truncation left nothing but the template.
            prefix_tokens: prefix.map_or(0, |prefix| prefix.min(input_ids.len() - 1)),
            task: Task::Embed,
            input_ids,
        };
        Ok(Prepared {
            sequence,
            tokens,
            parts,
            truncated: false,
        })
    }

    /// How many of a draft's first ids every input with its instruction may share; `None` without a template.
    ///
    /// The special tokens split the text, so the ids up to and with the last one before the user's parts depend on the instruction
    /// alone. What follows is tokenised together with the user's text, which may merge with it: `user\n` before `\nhello` ends in
    /// the one token `\n\n`. So ids are compared, not places in the text: of `user\n` those count that it has alone too. Whatever a
    /// tokenizer merges or normalises, what is counted is the beginning of one list of ids, and the same ids are the same keys and
    /// values. `opening` is what the template says there, as ids where nothing follows.
    pub(super) fn prefix_tokens(draft: &Draft, opening: &[u32]) -> Option<usize> {
        // Truncation may have cut the prompt before the user's turn.
        let fixed = draft.fixed?.min(draft.ids.len());
        let shared = draft.ids[fixed..]
            .iter()
            .zip(opening)
            .take_while(|(id, alone)| id == alone)
            .count();
        Some(fixed + shared)
    }

    pub(super) fn part(
        &self,
        draft: &mut Draft,
        part: &PromptPart,
        limit: ContextLimit,
    ) -> Result<(), ProcessorError> {
        match part {
            PromptPart::Text(text) => {
                let kept = self.clip(text, limit)?;
                draft.clipped |= kept.len() < text.len();
                draft.write(kept);
                Ok(())
            }
            PromptPart::TokenIds(ids) => {
                self.flush(draft, limit)?;
                self.tokenizer.check_ids(ids)?;
                draft.push_all(ids);
                Ok(())
            }
            PromptPart::Image(patches) => {
                draft.tokens.image_tokens += patches.grid.vision_tokens();
                self.span(draft, patches.grid, limit, Modality::Image)
            }
            PromptPart::Video(video) => self.video(draft, video, limit),
        }
    }

    /// A video is a span for every frame pair, each after its time; no pair of vision tokens stands around the whole.
    fn video(
        &self,
        draft: &mut Draft,
        video: &VideoPatches,
        limit: ContextLimit,
    ) -> Result<(), ProcessorError> {
        let grid = video.patches.grid;
        draft.tokens.video_tokens += grid.vision_tokens();
        for time in &video.timestamps {
            draft.text.push_str(&format!("<{time:.1} seconds>"));
            self.span(draft, GridThw { t: 1, ..grid }, limit, Modality::Video)?;
        }
        Ok(())
    }

    fn span(
        &self,
        draft: &mut Draft,
        grid: GridThw,
        limit: ContextLimit,
        modality: Modality,
    ) -> Result<(), ProcessorError> {
        let ids = self.tokenizer.ids().vision;
        let pad = match modality {
            Modality::Image => ids.image_token_id,
            Modality::Video => ids.video_token_id,
        };
        self.special(draft, ids.vision_start_token_id, limit)?;
        draft.spans.push((draft.ids.len(), grid));
        for _ in 0..grid.vision_tokens() {
            draft.push(pad, false);
        }
        self.special(draft, ids.vision_end_token_id, limit)
    }

    pub(super) fn special(
        &self,
        draft: &mut Draft,
        id: u32,
        limit: ContextLimit,
    ) -> Result<(), ProcessorError> {
        self.flush(draft, limit)?;
        draft.push(id, false);
        Ok(())
    }

    /// Tokenises the text gathered since the last special token.
    pub(super) fn flush(
        &self,
        draft: &mut Draft,
        limit: ContextLimit,
    ) -> Result<(), ProcessorError> {
        let text = std::mem::take(&mut draft.text);
        let user = std::mem::take(&mut draft.user);
        let begins = std::mem::take(&mut draft.begins);
        if text.is_empty() {
            return Ok(());
        }
        if limit.truncation == Truncation::None {
            self.refuse_overflow(draft, &text, limit)?;
        }
        let encoded = self.tokenizer.encode(&text)?;
        for (&id, &(start, end)) in encoded.ids.iter().zip(&encoded.bytes) {
            // The user's text that begins last before the token is the only one that can hold it. A token that also spells text of
            // the template is not the user's.
            let candidate = user.partition_point(|range| range.start <= start);
            let inside = candidate > 0 && end <= user[candidate - 1].end;
            // A token is of the part it begins in, and before the first of them the template's.
            let owner = begins.partition_point(|(begin, _)| *begin <= start);
            let owner = owner.checked_sub(1).map(|last| begins[last].1);
            draft.push_of(owner, id, inside);
        }
        Ok(())
    }

    /// Refuses a text that is certainly too long before all of it is tokenised.
    fn refuse_overflow(
        &self,
        draft: &Draft,
        text: &str,
        limit: ContextLimit,
    ) -> Result<(), ProcessorError> {
        let least = self
            .tokenizer
            .length_bound(text, limit.max_tokens)
            .least_tokens;
        let tokens = if least > limit.max_tokens {
            Some(least)
        } else {
            let overflow = self
                .tokenizer
                .overflow(text, limit.max_tokens, Side::Start)?;
            overflow.map(|overflow| overflow.tokens)
        };
        match tokens {
            None => Ok(()),
            Some(tokens) => Err(ProcessorError::TooLong {
                tokens: draft.ids.len() + tokens,
                at_least: true,
                media_tokens: draft.tokens.image_tokens + draft.tokens.video_tokens,
                limit: limit.max_tokens,
            }),
        }
    }

    /// The end of a text that can stay when it is certain to be cut: cutting costs what stays, not what goes.
    ///
    /// What remains still has more tokens than the limit.
    fn clip<'a>(&self, text: &'a str, limit: ContextLimit) -> Result<&'a str, ProcessorError> {
        let side = match limit.truncation {
            Truncation::None => return Ok(text),
            Truncation::End | Truncation::Reference => Side::Start,
            Truncation::Start => Side::End,
        };
        // One character more than the bound, so that a text over it stays over the limit.
        let most = self
            .tokenizer
            .length_bound(text, limit.max_tokens)
            .most_bytes
            .saturating_add(4);
        let text = end_of(text, most, side);
        let overflow = self.tokenizer.overflow(text, limit.max_tokens, side)?;
        Ok(overflow.map_or(text, |overflow| end_of(text, overflow.bytes, side)))
    }
}

/// The media among parts, in order.
pub(super) fn media_of(parts: &[PromptPart]) -> Vec<Arc<Patches>> {
    let media = |part: &PromptPart| match part {
        PromptPart::Image(patches) => Some(patches.clone()),
        PromptPart::Video(video) => Some(video.patches.clone()),
        PromptPart::Text(_) | PromptPart::TokenIds(_) => None,
    };
    parts.iter().filter_map(media).collect()
}

/// The system turn: stripped, and ended with a full stop unless it ends in punctuation.
///
/// # Source
/// The official embedding script; a character is punctuation when its Unicode general category starts with `P`.
pub(super) fn instruction(given: Option<&str>) -> String {
    let text = given.unwrap_or_default().trim_matches(is_python_space);
    match text.chars().last() {
        None => DEFAULT_INSTRUCTION.to_owned(),
        Some(last) if is_punctuation(last) => text.to_owned(),
        Some(_) => format!("{text}."),
    }
}

/// What Python's `str.strip` takes: Unicode white space and the four information separators.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn is_punctuation(c: char) -> bool {
    use GeneralCategory::{
        ClosePunctuation, ConnectorPunctuation, DashPunctuation, FinalPunctuation,
        InitialPunctuation, OpenPunctuation, OtherPunctuation,
    };
    matches!(
        get_general_category(c),
        ClosePunctuation
            | ConnectorPunctuation
            | DashPunctuation
            | FinalPunctuation
            | InitialPunctuation
            | OpenPunctuation
            | OtherPunctuation
    )
}

#[cfg(test)]
mod tests;
