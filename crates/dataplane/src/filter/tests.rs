//! Tests of the packet filter: `agree` compares rendered rules with policy itself, `history` incremental changes with fresh
//! ones, `path` says what each piece looks like, `felix` what it takes of a FelixConfiguration, `page` keeps the documentation true.

mod agree;
mod build;
mod felix;
mod history;
mod page;
mod path;
mod random;
mod refusals;
