//! Enumerations whose texts are read in any case, as upstream reads them, and written in one.

/// Makes an enum of choices: `choice! { /// doc  pub enum Name { /// doc  Variant = "text", … } }`.
macro_rules! choice {
    ($(#[$doc:meta])* pub enum $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// Every choice.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The text in documents.
            pub fn text(self) -> &'static str {
                match self { $($name::$variant => $text,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.text())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let found = Self::ALL.iter().find(|choice| choice.text().eq_ignore_ascii_case(text));
                found.copied().ok_or_else(|| {
                    $crate::problem::one_of(text, &[$($text,)*])
                })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.text())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize<'de>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

pub(crate) use choice;

#[cfg(test)]
mod tests {
    choice! {
        /// A test.
        pub enum Fruit {
            /// An apple.
            Apple = "Apple",
            /// A pear.
            Pear = "PEAR",
        }
    }

    #[test]
    fn choices_are_read_in_any_case_and_written_in_one() {
        for (json, wanted) in [
            ("\"apple\"", Fruit::Apple),
            ("\"Pear\"", Fruit::Pear),
            ("\"PEAR\"", Fruit::Pear),
        ] {
            assert_eq!(serde_json::from_str::<Fruit>(json).unwrap(), wanted);
        }
        assert_eq!(serde_json::to_string(&Fruit::ALL).unwrap(), r#"["Apple","PEAR"]"#);
        assert_eq!(
            "aple".parse::<Fruit>().unwrap_err(),
            "must be one of Apple, PEAR; did you mean `Apple`?"
        );
    }
}
