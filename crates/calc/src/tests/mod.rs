//! Tests of the whole graph; `build` makes resources, `incremental` compares with the oracle, `rules` looks at single rules.

mod build;
mod incremental;
mod rules;
