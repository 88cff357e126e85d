mod build;
mod closed;
mod expect;
mod incremental;
mod random;
mod verdicts;
