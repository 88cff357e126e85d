//! A type and its shape.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "only its shape counts")]
struct Outer {
    first_name: String,
    #[serde(default)]
    inner: Vec<Inner>,
    counts: BTreeMap<String, u16>,
    color: Option<Color>,
    port: crate::Port,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "only its shape counts")]
struct Inner {
    flag: bool,
    address: std::net::Ipv4Addr,
    #[serde(default)]
    places: Vec<Option<usize>>,
}

#[derive(Deserialize)]
enum Color {
    Red,
    #[serde(rename = "blue")]
    Blue,
}

#[test]
fn a_shape_is_what_serde_reads() {
    let field = |name, shape, required| Field { name, shape, required };
    let place = Shape::Optional(Box::new(Shape::Integer(0, u64::MAX)));
    let inner = vec![
        field("flag", Shape::Bool, true),
        field("address", Shape::Text, true),
        field("places", Shape::List(Box::new(place)), false),
    ];
    let expected = vec![
        field("firstName", Shape::Text, true),
        field("inner", Shape::List(Box::new(Shape::Struct(inner))), false),
        field("counts", Shape::Map(Box::new(Shape::Integer(0, 65535))), true),
        field(
            "color",
            Shape::Optional(Box::new(Shape::Choice(&["Red", "blue"]))),
            false,
        ),
        field("port", Shape::Either, true),
    ];
    assert_eq!(of::<Outer>(), Shape::Struct(expected));
}
