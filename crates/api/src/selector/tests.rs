use proptest::prelude::*;

use super::*;

fn labels(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split(',').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

#[track_caller]
fn matches(selector: &str, yes: &[&str], no: &[&str]) {
    let parsed = Selector::parse(selector).unwrap();
    let canonical = Selector::parse(&parsed.to_string()).unwrap();
    for (set, wanted) in yes
        .iter()
        .map(|set| (set, true))
        .chain(no.iter().map(|set| (set, false)))
    {
        assert_eq!(parsed.evaluate(&labels(set)), wanted, "{selector} on {set}");
        assert_eq!(canonical.evaluate(&labels(set)), wanted, "{canonical} on {set}");
    }
}

#[test]
fn comparisons() {
    matches("a == 'b'", &["a=b", "a=b,c=d"], &["", "a=c", "b=b"]);
    matches("a != 'b'", &["", "a=c"], &["a=b"]);
    matches("a contains 'b'", &["a=b", "a=abc"], &["", "a=a", "b=b"]);
    matches("a starts with 'b'", &["a=b", "a=bc"], &["", "a=ab"]);
    matches("a ends with 'b'", &["a=b", "a=ab"], &["", "a=bc"]);
    matches("a in {'b', 'c'}", &["a=b", "a=c"], &["", "a=d"]);
    matches("a not in {'b', 'c'}", &["", "a=d"], &["a=b", "a=c"]);
    matches("a in {}", &[], &["", "a=b"]);
    matches("has(a)", &["a=", "a=b"], &["", "b=a"]);
    matches("all()", &["", "a=b"], &[]);
    matches("", &["", "a=b"], &[]);
    matches(" \t", &["", "a=b"], &[]);
    matches("global()", &["", "a=b"], &[]);
}

#[test]
fn not_binds_tightest_and_or_loosest() {
    matches("!a == 'x' && b == 'y'", &["b=y"], &["a=x,b=y", ""]);
    matches("a == '1' || b == '1' && c == '1'", &["a=1", "b=1,c=1"], &["b=1", "c=1"]);
    matches("(a == '1' || b == '1') && c == '1'", &["a=1,c=1"], &["a=1", "c=1"]);
    matches("!!has(a)", &["a=1"], &[""]);
    matches("! ! !has(a)", &[""], &["a=1"]);
    matches("!(has(a) || !has(b))", &["b=1"], &["a=1,b=1", ""]);
}

#[test]
fn keywords_may_be_labels() {
    matches(
        "contains contains \"contains\"",
        &["contains=contains"],
        &["contains=x"],
    );
    matches("in in {'in'}", &["in=in"], &[""]);
    matches("not not in {'not'}", &["not=x", ""], &["not=not"]);
    matches("has == 'all'", &["has=all"], &[""]);
    matches(
        "starts starts with 's' && ends endswith 'e'",
        &["starts=s,ends=e"],
        &["starts=s"],
    );
}

#[test]
fn own_labels_hide_inherited_ones() {
    let selector = Selector::parse("a == 'own' && b == 'theirs'").unwrap();
    assert!(selector.evaluate(&(labels("a=own"), labels("a=theirs,b=theirs"))));
    assert!(!selector.evaluate(&(labels("a=own,b=own"), labels("b=theirs"))));
}

#[test]
fn the_canonical_text_and_its_id_are_upstreams() {
    let check = |text: &str, canonical: &str, id: &str| {
        let selector = Selector::parse(text).unwrap();
        assert_eq!(selector.to_string(), canonical);
        if !id.is_empty() {
            assert_eq!(selector.unique_id(), id);
        }
    };
    check("", "all()", "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug");
    check(" ( all( ) )", "all()", "s:5y5I3VdRZfDU01O--xXAPx2yxCQQqMf0M6IWug");
    check(
        "! (has( b)||! has(a ))",
        "!(has(b) || !has(a))",
        "s:Iss0uCleLYv1GSv_pNm7hAO58kE9jAx1NKyG3Q",
    );
    check(
        r#"! (a == "b"&&! c != "d")"#,
        r#"!(a == "b" && !c != "d")"#,
        "s:lh3haoY1ikTRkd4UZu0nWSaIBknYLPJLX16d-w",
    );
    check(
        "a=='b'&&c=='d'&&(has(e)||has(f))",
        r#"(a == "b" && c == "d" && (has(e) || has(f)))"#,
        "",
    );
    check("(has(a) && has(b)) && has(c)", "((has(a) && has(b)) && has(c))", "");
    check(r#"a == '"'"#, r#"a == '"'"#, "");
    check(r#"a contains "'""#, r#"a contains "'""#, "");
    check("a startswith 'b'", r#"a starts with "b""#, "");
    check("a notin {'z','x', 'z' ,\"a\",}", r#"a not in {"a", "x", "z"}"#, "");
    check("a in {'\"', 'b'}", r#"a in {'"', "b"}"#, "");
    check("a.b/c_d-e == 'é'", r#"a.b/c_d-e == "é""#, "");
}

#[test]
fn errors_say_where_and_what() {
    let check = |text: &str, position: usize, message: &str| {
        let error = Selector::parse(text).unwrap_err();
        assert_eq!((error.position, error.message.as_str()), (position, message), "{text}");
    };
    const OPERATOR: &str = "expected `==`, `!=`, `in`, `not in`, `contains`, `starts with` or `ends with`, found";
    const OPERAND: &str = "expected the name of a label, `has(`, `all()`, `!` or `(`, found";
    check("b", 1, &format!("{OPERATOR} the end"));
    check("a b", 2, &format!("{OPERATOR} `b`"));
    check("a = 'b'", 2, &format!("{OPERATOR} `=`"));
    check("a not 'b'", 2, &format!("{OPERATOR} `n`"));
    check("a\n== 'b'", 1, &format!("{OPERATOR} `\\n`"));
    check("b == b", 5, "expected a text in quotes, found `b`");
    check("'b' == b", 0, &format!("{OPERAND} `'`"));
    check("!", 1, &format!("{OPERAND} the end"));
    check("()", 1, &format!("{OPERAND} `)`"));
    check("a == 'b' &", 9, "expected `&&`, `||` or the end, found `&`");
    check("a == 'b' && %", 12, &format!("{OPERAND} `%`"));
    check("a == 'b' has(c)", 9, "expected `&&`, `||` or the end, found `h`");
    check("(a == 'b'", 9, "expected `)`, found the end");
    check("a == 'b", 5, "this quote is never closed by '");
    check("a in 'b'", 5, "expected `{`, found `'`");
    check("a in {'b' 'c'}", 10, "expected `,` or `}`, found `'`");
    check("a in {,}", 6, "expected a text in quotes, found `,`");
    check("has()", 4, &format!("{OPERAND} `)`"));
    check("all(a)", 4, "expected `)`, found `a`");
    check("é == 'b'", 0, &format!("{OPERAND} `é`"));
}

#[test]
fn limits() {
    assert!(Selector::parse(&format!("has({})", "a".repeat(512))).is_ok());
    assert_eq!(
        Selector::parse(&format!("has({})", "a".repeat(513)))
            .unwrap_err()
            .position,
        4
    );
    let nested = |depth: usize| format!("{}has(a){}", "(".repeat(depth), ")".repeat(depth));
    assert!(Selector::parse(&nested(128)).is_ok());
    assert!(Selector::parse(&nested(129)).is_err());
    assert!(Selector::parse(&"(".repeat(100_000)).is_err());
    assert!(Selector::parse(&format!("{}has(a)", "!".repeat(100_001))).is_ok());
}

#[test]
fn labels_can_be_prefixed() {
    let selector = Selector::parse("!(k == 'v' && has(t) || all()) && a in {'b'}").unwrap();
    let prefixed = selector.with_label_prefix("pcns.").to_string();
    assert_eq!(
        prefixed,
        r#"(!((pcns.k == "v" && has(pcns.t)) || all()) && pcns.a in {"b"})"#
    );
}

#[test]
fn global_is_recognised_anywhere() {
    for (text, alone, anywhere) in [
        ("global()", true, true),
        ("a == 'global()'", false, false),
        ("!(has(a) || global())", false, true),
    ] {
        let selector = Selector::parse(text).unwrap();
        assert_eq!(
            (selector.is_global(), selector.mentions_global()),
            (alone, anywhere),
            "{text}"
        );
    }
}

fn label_name() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("a"),
        Just("b"),
        Just("c"),
        Just("in"),
        Just("not"),
        Just("x.y/z-1_")
    ]
    .prop_map(str::to_owned)
}

/// A text with at most one sort of quotes, as only such can be written.
fn text() -> impl Strategy<Value = String> {
    prop_oneof!["[ab]{0,3}", "[ab'|&)é ]{0,4}", "[ab\"{},]{0,4}"]
}

fn expression() -> impl Strategy<Value = Expression> {
    let leaf = prop_oneof![
        Just(Expression::All),
        Just(Expression::Global),
        label_name().prop_map(Expression::Has),
        (label_name(), text()).prop_map(|(name, text)| Expression::Equals(name, text)),
        (label_name(), text()).prop_map(|(name, text)| Expression::Differs(name, text)),
        (label_name(), text()).prop_map(|(name, text)| Expression::Contains(name, text)),
        (label_name(), text()).prop_map(|(name, text)| Expression::StartsWith(name, text)),
        (label_name(), text()).prop_map(|(name, text)| Expression::EndsWith(name, text)),
        (label_name(), prop::collection::btree_set(text(), 0..3)).prop_map(|(name, set)| Expression::In(name, set)),
        (label_name(), prop::collection::btree_set(text(), 0..3)).prop_map(|(name, set)| Expression::NotIn(name, set)),
    ];
    leaf.prop_recursive(4, 24, 3, |inner| {
        prop_oneof![
            // Two negations in a row are none.
            inner
                .clone()
                .prop_filter("no !!", |part| !matches!(part, Expression::Not(_)))
                .prop_map(|part| Expression::Not(Box::new(part))),
            prop::collection::vec(inner.clone(), 2..4).prop_map(Expression::And),
            prop::collection::vec(inner, 2..4).prop_map(Expression::Or),
        ]
    })
}

/// The obvious evaluation: a truth value for each part, from a list of pairs.
fn oracle(expression: &Expression, pairs: &[(String, String)]) -> bool {
    let values = |name: &str| -> Vec<&str> {
        pairs
            .iter()
            .filter(|(n, _)| n == name)
            .map(|(_, v)| v.as_str())
            .collect()
    };
    match expression {
        Expression::All | Expression::Global => true,
        Expression::Has(name) => !values(name).is_empty(),
        Expression::Equals(name, text) => values(name) == [text.as_str()],
        Expression::Differs(name, text) => values(name) != [text.as_str()],
        Expression::Contains(name, text) => values(name).iter().any(|v| v.contains(text.as_str())),
        Expression::StartsWith(name, text) => values(name).iter().any(|v| v.starts_with(text.as_str())),
        Expression::EndsWith(name, text) => values(name).iter().any(|v| v.ends_with(text.as_str())),
        Expression::In(name, set) => set.iter().any(|text| values(name) == [text.as_str()]),
        Expression::NotIn(name, set) => !set.iter().any(|text| values(name) == [text.as_str()]),
        Expression::Not(inner) => !oracle(inner, pairs),
        Expression::And(parts) => !parts.iter().any(|part| !oracle(part, pairs)),
        Expression::Or(parts) => parts.iter().filter(|part| oracle(part, pairs)).count() > 0,
    }
}

proptest! {
    #[test]
    fn what_is_printed_reads_back(expression in expression()) {
        let selector = Selector::from(expression);
        prop_assert_eq!(Selector::parse(&selector.to_string()), Ok(selector));
    }

    #[test]
    fn evaluation_agrees_with_the_oracle(expression in expression(), labels in prop::collection::btree_map(label_name(), text(), 0..4)) {
        let pairs: Vec<(String, String)> = labels.clone().into_iter().collect();
        let wanted = oracle(&expression, &pairs);
        prop_assert_eq!(Selector::from(expression).evaluate(&labels), wanted);
    }

    #[test]
    fn space_does_not_matter(expression in expression(), gap in "[ \t]{0,2}") {
        let selector = Selector::from(expression);
        // Space goes around every token that no quote can contain in these texts.
        let spaced = selector.to_string().replace(" == ", &format!("{gap}=={gap}")).replace("has(", &format!("has({gap}"));
        prop_assert_eq!(Selector::parse(&format!("{gap}{spaced}{gap}")), Ok(selector));
    }

    #[test]
    fn no_text_breaks_the_parser(text in "\\PC{0,40}") {
        if let Err(error) = Selector::parse(&text) {
            prop_assert!(text.is_char_boundary(error.position));
        }
    }

    #[test]
    fn no_soup_of_tokens_breaks_the_parser(tokens in prop::collection::vec(prop_oneof![
        Just("a"), Just("=="), Just("'b'"), Just("!"), Just("("), Just(")"), Just("&&"), Just("||"), Just("in"), Just("{"), Just("}"), Just("has("), Just("not"), Just(" "),
    ], 0..12)) {
        if let Ok(selector) = Selector::parse(&tokens.concat()) {
            // `!(!a)` prints as `!!a`, which is `a`: as upstream.
            prop_assert!(Selector::parse(&selector.to_string()).is_ok());
        }
    }
}
