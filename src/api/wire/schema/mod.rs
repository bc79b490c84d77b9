//! The wire in the words of JSON Schema, as OpenAPI 3.1 has it: what requests take, and words that answers use.
//!
//! Requests are parsed by hand, so their schemas are written by hand too, from the parsers' own limits. The tests ask
//! the parsers about every name and every limit in them. The schemas of answers are derived from their types.

mod messages;
mod requests;
#[cfg(test)]
mod tests;

use std::ops::RangeInclusive;

use serde_json::Value;
use utoipa::ToSchema;
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{
    AdditionalProperties, AnyOfBuilder, Array, ArrayBuilder, Object, ObjectBuilder, Ref, Schema, SchemaType, Type,
};

use super::error;
use crate::base::error::Code;

/// An object with these fields and no others; `null` stands for absent wherever a field may be absent.
pub struct Record(Object);

impl Record {
    pub fn new(description: &str) -> Self {
        let object = ObjectBuilder::new().schema_type(Type::Object).description(Some(description));
        Self(object.additional_properties(Some(AdditionalProperties::FreeForm(false))).build())
    }

    #[must_use]
    pub fn needed(mut self, name: &str, schema: impl Into<RefOr<Schema>>, description: &str) -> Self {
        self.0.required.push(name.to_owned());
        self.0.properties.insert(name.to_owned(), described(schema.into(), description));
        self
    }

    #[must_use]
    pub fn optional(mut self, name: &str, schema: impl Into<Schema>, description: &str) -> Self {
        self.0.properties.insert(name.to_owned(), described(nullable(schema.into()).into(), description));
        self
    }

    pub fn build(self) -> Schema {
        Schema::Object(self.0)
    }
}

fn described(mut schema: RefOr<Schema>, text: &str) -> RefOr<Schema> {
    let text = (!text.is_empty()).then(|| text.to_owned());
    match &mut schema {
        RefOr::Ref(reference) => reference.description = text.unwrap_or_default(),
        RefOr::T(Schema::Object(object)) => object.description = text,
        RefOr::T(Schema::Array(array)) => array.description = text,
        RefOr::T(Schema::AnyOf(any)) => any.description = text,
        // No field of a request is of another kind.
        RefOr::T(_) => {}
    }
    schema
}

fn nullable(mut schema: Schema) -> Schema {
    let or_null = |types: &mut SchemaType| {
        if let SchemaType::Type(one) = types
            && *one != Type::Null
        {
            *types = [one.clone(), Type::Null].into_iter().collect();
        }
    };
    match &mut schema {
        Schema::Object(object) => {
            or_null(&mut object.schema_type);
            object.enum_values.iter_mut().for_each(|values| values.push(Value::Null));
        }
        Schema::Array(array) => or_null(&mut array.schema_type),
        Schema::AnyOf(any) => any.items.push(null().into()),
        _ => {}
    }
    schema
}

pub fn boolean() -> Object {
    Object::with_type(Type::Boolean)
}

pub fn null() -> Object {
    Object::with_type(Type::Null)
}

pub fn integer(range: RangeInclusive<i64>) -> Object {
    let (min, max) = range.into_inner();
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(min)).maximum(Some(max)).build()
}

pub fn number(range: RangeInclusive<f32>) -> Object {
    let (min, max) = range.into_inner();
    ObjectBuilder::new().schema_type(Type::Number).minimum(Some(min)).maximum(Some(max)).build()
}

/// Above 0, up to `max`.
pub fn positive(max: f32) -> Object {
    ObjectBuilder::new().schema_type(Type::Number).exclusive_minimum(Some(0)).maximum(Some(max)).build()
}

pub fn text() -> Object {
    Object::with_type(Type::String)
}

/// At most `max_bytes`, so no more characters than that.
pub fn short_text(max_bytes: usize) -> Object {
    ObjectBuilder::new().schema_type(Type::String).max_length(Some(max_bytes)).build()
}

/// One of a few words.
pub fn word<'a>(words: impl IntoIterator<Item = &'a str>) -> Object {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(words)).build()
}

/// A boolean that may only be false.
pub fn only_false() -> Object {
    ObjectBuilder::new().schema_type(Type::Boolean).enum_values(Some([false])).build()
}

pub fn list(of: impl Into<RefOr<Schema>>, num: RangeInclusive<usize>) -> Array {
    let (min, max) = num.into_inner();
    let min = (min > 0).then_some(min);
    ArrayBuilder::new().items(of.into()).min_items(min).max_items(Some(max)).build()
}

/// A list that may only be empty.
pub fn empty_list() -> Array {
    list(Object::with_type(SchemaType::AnyValue), 0..=0)
}

/// An object whose names are the client's, with at most `max` entries.
pub fn map(of: impl Into<RefOr<Schema>>, max: usize) -> ObjectBuilder {
    let values = AdditionalProperties::RefOr(of.into());
    ObjectBuilder::new().schema_type(Type::Object).additional_properties(Some(values)).max_properties(Some(max))
}

/// Any object at all.
pub fn object() -> Object {
    let anything = AdditionalProperties::FreeForm(true);
    ObjectBuilder::new().schema_type(Type::Object).additional_properties(Some(anything)).build()
}

pub fn any_of(schemas: impl IntoIterator<Item = RefOr<Schema>>) -> Schema {
    schemas.into_iter().fold(AnyOfBuilder::new(), AnyOfBuilder::item).build().into()
}

pub fn reference<T: ToSchema>() -> RefOr<Schema> {
    Ref::from_schema_name(T::name()).into()
}

/// A token id: less than the model's number of them, which this document does not know and which is a u32.
pub fn token() -> Object {
    integer(0..=i64::from(u32::MAX) - 1)
}

/// Words of [`error::ErrorObject::code`].
pub fn error_code() -> Object {
    word(Code::ALL.map(error::code))
}

/// Words of [`error::ErrorObject::kind`].
pub fn error_type() -> Object {
    let mut kinds = Code::ALL.map(error::kind).to_vec();
    kinds.sort_unstable();
    kinds.dedup();
    word(kinds)
}

/// `finish_reason` of a whole answer.
pub fn finish_reason() -> Object {
    word(["stop", "length"])
}

/// `finish_reason` where it may not have come yet.
pub fn finish_reason_or_null() -> Schema {
    nullable(finish_reason().into())
}
