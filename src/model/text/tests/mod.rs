//! Tests of the text core against the `tokenizers` crate's own decoders and against naive searches.

mod detokenizer;
mod files;
mod stop;
mod tokenizer;
mod vocabularies;
