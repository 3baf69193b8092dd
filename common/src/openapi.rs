//! OpenAPI schemas of the types that serialize as plain strings or numbers.

use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Schema, SchemaType, Type};

/// A string with a description and an optional pattern.
pub fn string_schema(description: &str, pattern: Option<&str>) -> RefOr<Schema> {
    ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::String))
        .description(Some(description))
        .pattern(pattern)
        .into()
}

/// A whole number or a string with a unit.
pub fn number_or_string_schema(description: &str) -> RefOr<Schema> {
    let number = ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::Integer))
        .minimum(Some(0))
        .build();
    let text = ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::String))
        .build();
    OneOfBuilder::new()
        .item(number)
        .item(text)
        .description(Some(description))
        .into()
}
