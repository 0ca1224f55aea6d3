//! The prompt as text, for people: nothing computes with it.

use super::template::{NO_PART, Template, instruction};
use super::{ProcessorError, Prompt, PromptPart};

impl Template {
    /// The prompt as a person reads it: one placeholder for each image or video, nothing of the post-processor.
    pub(super) fn render(&self, prompt: &Prompt) -> Result<String, ProcessorError> {
        let mut parts = String::new();
        if prompt.parts.is_empty() {
            parts.push_str(NO_PART);
        }
        for part in &prompt.parts {
            match part {
                PromptPart::Text(text) => parts.push_str(text),
                PromptPart::TokenIds(ids) => parts.push_str(&self.tokenizer.decode(ids)?),
                PromptPart::Image(_) => {
                    parts.push_str("<|vision_start|><|image_pad|><|vision_end|>")
                }
                PromptPart::Video(_) => {
                    parts.push_str("<|vision_start|><|video_pad|><|vision_end|>")
                }
            }
        }
        if prompt.raw {
            return Ok(parts);
        }
        let instruction = instruction(prompt.instruction.as_deref());
        Ok(format!(
            "<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{parts}<|im_end|>\n<|im_start|>assistant\n"
        ))
    }
}
