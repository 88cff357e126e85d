//! The `Kernel` port on a live network namespace. The only crate with `unsafe` code.

pub mod ipip;
