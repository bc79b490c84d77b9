//! Text in and out: tokenizer, incremental detokeniser, stop strings, chat templates.
pub struct Tokenizer;
