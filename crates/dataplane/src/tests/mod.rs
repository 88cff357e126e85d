//! Tests of the whole dataplane.
