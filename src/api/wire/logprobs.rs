//! Log-probabilities in the shapes of the two APIs.

use std::borrow::Cow;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{AdditionalProperties, ObjectBuilder, Schema, Type};
use utoipa::{PartialSchema, ToSchema};

use super::schema;
use crate::model::TokenId;

/// JSON has no infinity; OpenAI writes this for what cannot be.
const LEAST: f32 = -9999.0;

fn finite<S: Serializer>(logprob: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    // `max` takes the number where the other is NaN.
    serializer.serialize_f32(logprob.max(LEAST))
}

/// Of a choice in a chat: `{content, refusal}`.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct ChatLogprobs<'a> {
    pub content: Vec<ChatTokenLogprob<'a>>,
    /// Always null: no model here writes refusals apart.
    #[schema(schema_with = schema::null, required = true)]
    pub refusal: Option<()>,
}

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct ChatTokenLogprob<'a> {
    #[serde(flatten)]
    pub token: TokenText<'a>,
    /// Highest first.
    pub top_logprobs: Vec<TokenText<'a>>,
}

/// A token's text; where its bytes are not UTF-8, `bytes` says what the text cannot.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TokenText<'a> {
    #[schema(value_type = String)]
    pub token: Cow<'a, str>,
    #[serde(serialize_with = "finite")]
    pub logprob: f32,
    #[schema(value_type = Vec<u8>)]
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> TokenText<'a> {
    pub fn new(bytes: impl Into<Cow<'a, [u8]>>, logprob: f32) -> Self {
        let bytes = bytes.into();
        let token = match &bytes {
            Cow::Borrowed(bytes) => String::from_utf8_lossy(bytes),
            Cow::Owned(bytes) => String::from_utf8_lossy(bytes).into_owned().into(),
        };
        Self { token, logprob, bytes }
    }
}

/// Of a choice of a text completion: four lists of the same length.
#[derive(Debug, Clone, Default, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    pub tokens: Vec<String>,
    /// None for a prompt's first token, which nothing predicts.
    pub token_logprobs: Vec<Option<f32>>,
    pub top_logprobs: Vec<Option<TopLogprobs>>,
    /// Where each token begins in the choice's text, in characters.
    pub text_offset: Vec<usize>,
    #[serde(skip)]
    next_offset: usize,
}

impl CompletionLogprobs {
    /// For tokens from character `text_offset` of the choice's text on: chunks of a stream go on counting.
    pub fn starting_at(text_offset: usize) -> Self {
        Self { next_offset: text_offset, ..Self::default() }
    }

    /// A token that is not shown (a special one) stands in the lists and takes no room in the text.
    pub fn push(&mut self, token: String, is_shown: bool, logprob: Option<f32>, top: Option<TopLogprobs>) {
        self.text_offset.push(self.next_offset);
        self.next_offset += if is_shown { token.chars().count() } else { 0 };
        self.tokens.push(token);
        self.token_logprobs.push(logprob.map(|l| l.max(LEAST)));
        self.top_logprobs.push(top);
    }

    /// Where the next token will begin.
    pub fn next_offset(&self) -> usize {
        self.next_offset
    }
}

/// Alternatives by text, highest first: a JSON object. Of two tokens with the same text the likelier one is kept.
#[derive(Debug, Clone, Default)]
pub struct TopLogprobs(Vec<(String, f32)>);

impl FromIterator<(String, f32)> for TopLogprobs {
    fn from_iter<I: IntoIterator<Item = (String, f32)>>(pairs: I) -> Self {
        let mut kept: Vec<(String, f32)> = Vec::new();
        for (token, logprob) in pairs {
            if kept.iter().all(|(seen, _)| *seen != token) {
                kept.push((token, logprob.max(LEAST)));
            }
        }
        Self(kept)
    }
}

impl ToSchema for TopLogprobs {}

impl PartialSchema for TopLogprobs {
    fn schema() -> RefOr<Schema> {
        by_token("The likeliest tokens, by their text.", f32::schema())
    }
}

impl Serialize for TopLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (token, logprob) in &self.0 {
            map.serialize_entry(token, logprob)?;
        }
        map.end()
    }
}

/// `prompt_logprobs` of one prompt token, in vLLM's shape: by token id, the token itself first, then the alternatives.
#[derive(Debug, Clone, Default)]
pub struct PromptLogprobs(pub Vec<(TokenId, PromptLogprob)>);

#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PromptLogprob {
    #[serde(serialize_with = "finite")]
    pub logprob: f32,
    /// 1 for the most likely token.
    pub rank: u32,
    pub decoded_token: String,
}

impl ToSchema for PromptLogprobs {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((PromptLogprob::name().into(), PromptLogprob::schema()));
    }
}

impl PartialSchema for PromptLogprobs {
    fn schema() -> RefOr<Schema> {
        by_token("By token id: the token itself, then the likeliest ones.", schema::reference::<PromptLogprob>())
    }
}

fn by_token(description: &str, entry: RefOr<Schema>) -> RefOr<Schema> {
    let object = ObjectBuilder::new().schema_type(Type::Object).description(Some(description));
    object.additional_properties(Some(AdditionalProperties::RefOr(entry))).build().into()
}

impl Serialize for PromptLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (i, (token, logprob)) in self.0.iter().enumerate() {
            // The token itself may be among the alternatives too.
            if self.0[..i].iter().all(|(seen, _)| seen != token) {
                map.serialize_entry(token, logprob)?;
            }
        }
        map.end()
    }
}
