//! Checkpoints that hold more than a text model.

use std::collections::BTreeMap;

use super::Tensor;

/// Where the text model lies, in the layouts of transformers 4 and 5, and what its part is called alone.
const TEXT: &[(&str, &str)] = &[
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
    ("model.language_model.", "model."),
];
const OTHER: &[&str] =
    &["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];

/// The text model's tensors under the names that they have in a text-only checkpoint, and the number of tensors of
/// the image part, which is left out. Whatever is neither keeps its name, for [`super::bind`] to judge.
pub fn text_part(tensors: BTreeMap<String, Tensor>) -> (BTreeMap<String, Tensor>, usize) {
    let before = tensors.len();
    let text: BTreeMap<String, Tensor> = tensors
        .into_iter()
        .filter(|(name, _)| !OTHER.iter().any(|prefix| name.starts_with(prefix)))
        .map(|(name, tensor)| (text_name(&name).unwrap_or(name), tensor))
        .collect();
    let left_out = before - text.len();
    (text, left_out)
}

fn text_name(name: &str) -> Option<String> {
    TEXT.iter().find_map(|(prefix, alone)| name.strip_prefix(prefix).map(|rest| format!("{alone}{rest}")))
}
