//! Pod.
