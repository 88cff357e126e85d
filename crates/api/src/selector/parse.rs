//! Text to expression, by recursive descent; every error knows its place.

use std::collections::BTreeSet;

use super::{Expression, SelectorError};

/// Most characters of a label's name.
const LONGEST_NAME: usize = 512;
/// Most parentheses inside each other, so that no text can exhaust the stack.
const DEEPEST: usize = 128;

pub(super) fn parse(text: &str) -> Result<Expression, SelectorError> {
    let mut parser = Parser { text, at: 0, depth: 0 };
    parser.skip_space();
    if parser.rest().is_empty() {
        return Ok(Expression::All);
    }
    let expression = parser.alternatives()?;
    match parser.rest() {
        "" => Ok(expression),
        _ => Err(parser.expected("`&&`, `||` or the end")),
    }
}

/// Each method starts at something that is no space and leaves it that way.
struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    /// `a || b || …`
    fn alternatives(&mut self) -> Result<Expression, SelectorError> {
        let mut parts = vec![self.conjunction()?];
        while self.take("||") {
            parts.push(self.conjunction()?);
        }
        Ok(one_or(parts, Expression::Or))
    }

    /// `a && b && …`
    fn conjunction(&mut self) -> Result<Expression, SelectorError> {
        let mut parts = vec![self.operation()?];
        while self.take("&&") {
            parts.push(self.operation()?);
        }
        Ok(one_or(parts, Expression::And))
    }

    /// A comparison, call or parenthesis, after any number of `!`.
    fn operation(&mut self) -> Result<Expression, SelectorError> {
        let mut negated = false;
        while self.rest().starts_with('!') && !self.rest().starts_with("!=") {
            self.take("!");
            negated = !negated;
        }
        let expression = self.positive()?;
        Ok(if negated {
            Expression::Not(Box::new(expression))
        } else {
            expression
        })
    }

    fn positive(&mut self) -> Result<Expression, SelectorError> {
        if self.take("(") {
            if self.depth == DEEPEST {
                return Err(self.error(format!("at most {DEEPEST} parentheses may stand inside each other")));
            }
            self.depth += 1;
            let inner = self.alternatives()?;
            self.depth -= 1;
            self.expect(")")?;
            Ok(inner)
        } else if self.take("all(") {
            self.expect(")")?;
            Ok(Expression::All)
        } else if self.take("global(") {
            self.expect(")")?;
            Ok(Expression::Global)
        } else if self.take("has(") {
            let name = self.name()?;
            self.expect(")")?;
            Ok(Expression::Has(name))
        } else {
            self.comparison()
        }
    }

    fn comparison(&mut self) -> Result<Expression, SelectorError> {
        let name = self.name()?;
        if self.take("==") {
            Ok(Expression::Equals(name, self.quoted()?))
        } else if self.take("!=") {
            Ok(Expression::Differs(name, self.quoted()?))
        } else if self.take("contains") {
            Ok(Expression::Contains(name, self.quoted()?))
        } else if self.take_words("starts", "with") {
            Ok(Expression::StartsWith(name, self.quoted()?))
        } else if self.take_words("ends", "with") {
            Ok(Expression::EndsWith(name, self.quoted()?))
        } else if self.take_words("not", "in") {
            Ok(Expression::NotIn(name, self.set()?))
        } else if self.take("in") {
            Ok(Expression::In(name, self.set()?))
        } else {
            Err(self.expected("`==`, `!=`, `in`, `not in`, `contains`, `starts with` or `ends with`"))
        }
    }

    /// A label's name: letters, digits, `_`, `.`, `/` and `-`.
    fn name(&mut self) -> Result<String, SelectorError> {
        let rest = self.rest();
        let is_part = |c: char| c.is_ascii_alphanumeric() || "_./-".contains(c);
        let end = rest.find(|c| !is_part(c)).unwrap_or(rest.len());
        match end {
            0 => Err(self.expected("the name of a label, `has(`, `all()`, `!` or `(`")),
            1..=LONGEST_NAME => {
                self.advance(end);
                Ok(rest[..end].to_owned())
            }
            _ => Err(self.error(format!("a label's name has at most {LONGEST_NAME} characters"))),
        }
    }

    /// A text in quotes of either sort.
    fn quoted(&mut self) -> Result<String, SelectorError> {
        let rest = self.rest();
        let Some(quote) = rest.chars().next().filter(|c| ['"', '\''].contains(c)) else {
            return Err(self.expected("a text in quotes"));
        };
        match rest[1..].find(quote) {
            Some(length) => {
                self.advance(length + 2);
                Ok(rest[1..=length].to_owned())
            }
            None => Err(self.error(format!("this quote is never closed by {quote}"))),
        }
    }

    /// `{"a", "b"}`; a comma may follow the last.
    fn set(&mut self) -> Result<BTreeSet<String>, SelectorError> {
        self.expect("{")?;
        let mut texts = BTreeSet::new();
        while !self.take("}") {
            texts.insert(self.quoted()?);
            if !self.take(",") && !self.rest().starts_with('}') {
                return Err(self.expected("`,` or `}`"));
            }
        }
        Ok(texts)
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start_matches([' ', '\t']).len();
    }

    fn advance(&mut self, length: usize) {
        self.at += length;
        self.skip_space();
    }

    fn take(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.advance(token.len());
        }
        found
    }

    /// Two words, between which space is optional.
    fn take_words(&mut self, first: &str, second: &str) -> bool {
        let start = self.at;
        let found = self.take(first) && self.take(second);
        if !found {
            self.at = start;
        }
        found
    }

    fn expect(&mut self, token: &str) -> Result<(), SelectorError> {
        if self.take(token) {
            Ok(())
        } else {
            Err(self.expected(&format!("`{token}`")))
        }
    }

    fn expected(&self, what: &str) -> SelectorError {
        let found = match self.rest().chars().next() {
            None => "the end".to_owned(),
            Some(c) if c.is_control() => format!("`{}`", c.escape_default()),
            Some(c) => format!("`{c}`"),
        };
        self.error(format!("expected {what}, found {found}"))
    }

    fn error(&self, message: String) -> SelectorError {
        SelectorError {
            position: self.at,
            message,
        }
    }
}

fn one_or(mut parts: Vec<Expression>, many: impl FnOnce(Vec<Expression>) -> Expression) -> Expression {
    match parts.len() {
        1 => parts.swap_remove(0),
        _ => many(parts),
    }
}
