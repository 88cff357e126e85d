mod build;
mod incremental;
mod random;
